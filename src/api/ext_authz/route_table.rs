//! The routes file: rules by host, method and path, for an Envoy whose routes have none.
//!
//! The first route that matches a request has its rule. The file is YAML:
//!
//! ```yaml
//! routes:
//!   - host: api.example.com     # or *.example.com; any host without it
//!     methods: [GET]            # any method without it
//!     path_prefix: /orders      # of whole segments
//!     tenant: acme
//!     scopes: [orders:read]
//! ```

use std::sync::Arc;

use serde_yaml_ng::{Mapping, Value};

use super::{
    path,
    rule::{Rule, RuleFields},
};
use crate::{api::convert::request::Fields, domain::violation::Violation};

/// The maximum number of routes.
pub const ROUTES_MAX: usize = 1000;
/// The maximum number of methods of a route.
const METHODS_MAX: usize = 16;

/// The routes of the file, in its order.
#[derive(Default)]
pub struct RouteTable(Vec<Route>);

struct Route {
    host: Host,
    /// Any method if empty.
    methods: Vec<String>,
    path_prefix: Vec<Vec<u8>>,
    rule: Arc<Rule>,
}

/// The hosts of a route, in lower case.
enum Host {
    Any,
    Exact(String),
    /// A suffix that begins with a dot.
    Below(String),
}

impl RouteTable {
    /// Parses the file.
    ///
    /// # Errors
    /// A text that names each invalid field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Value = serde_yaml_ng::from_str(text)
            .map_err(|error| format!("it is not YAML that can be read: {error}"))?;
        let mut fields = Fields::default();
        let Some(routes) = list_of_routes(&file) else {
            return Err("it must have one field, routes, with a list".to_owned());
        };
        if routes.len() > ROUTES_MAX {
            return Err(format!("it must have at most {ROUTES_MAX} routes"));
        }
        let routes = routes.iter().enumerate();
        let routes = routes.map(|(place, route)| {
            let prefix = format!("routes[{place}].");
            Some(Source::of(route, &prefix, &mut fields)?.route())
        });
        let routes: Vec<_> = routes.collect();
        let told = |violation: &Violation| format!("{} {}", violation.field, violation.description);
        match fields.check() {
            Ok(()) => Ok(Self(routes.into_iter().flatten().collect())),
            Err(invalid) => {
                let told: Vec<_> = invalid.0.iter().map(told).collect();
                Err(told.join("; "))
            }
        }
    }

    /// Returns the number of routes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns true if there are no routes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the rule of the first route that matches.
    pub(super) fn find(&self, host: &[u8], method: &[u8], path: &[u8]) -> Option<Arc<Rule>> {
        if self.0.is_empty() {
            return None;
        }
        let host = std::str::from_utf8(host).ok()?.to_ascii_lowercase();
        let host = without_port(&host);
        let path = path::segments(path)?;
        let route = self.0.iter().find(|route| {
            let any_method = route.methods.is_empty();
            route.host.matches(host)
                && (any_method || route.methods.iter().any(|it| it.as_bytes() == method))
                && path.starts_with(&route.path_prefix)
        })?;
        Some(Arc::clone(&route.rule))
    }
}

impl Host {
    /// Parses the pattern of a route.
    fn parse(pattern: &str) -> Option<Self> {
        let pattern = pattern.to_ascii_lowercase();
        let (name, below) = match pattern.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (&*pattern, false),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
        let right = (1..=253).contains(&name.len()) && name.bytes().all(plain);
        if !right || without_port(name) != name {
            return None;
        }
        Some(if below {
            Self::Below(format!(".{name}"))
        } else {
            Self::Exact(name.to_owned())
        })
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(name) => name == host,
            Self::Below(suffix) => host.len() > suffix.len() && host.ends_with(&**suffix),
        }
    }
}

/// Returns a host without its port and without the dot of the DNS root.
fn without_port(host: &str) -> &str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

fn list_of_routes(file: &Value) -> Option<&Vec<Value>> {
    let file = file.as_mapping().filter(|file| file.len() == 1)?;
    file.get("routes")?.as_sequence()
}

/// A route of the file with its fields.
struct Source {
    host: Host,
    methods: Vec<String>,
    path_prefix: Vec<Vec<u8>>,
    rule: Rule,
}

impl Source {
    fn of(route: &Value, prefix: &str, fields: &mut Fields) -> Option<Self> {
        let Some(route) = route.as_mapping() else {
            fields.note(prefix.trim_end_matches('.'), "must be a mapping");
            return None;
        };
        let mut reader = Reader {
            route,
            prefix,
            fields,
        };
        reader.refuse_unknown();
        let host = reader.host();
        let methods = reader.methods();
        let path_prefix = reader.path_prefix();
        let rule = RuleFields {
            tenant: reader.text("tenant"),
            scopes: reader.texts("scopes"),
            any_scopes: reader.texts("any_scopes"),
            audience: reader.text("audience"),
            header: reader.text("header"),
            query_parameter: reader.text("query_parameter"),
            forward_credential: reader.flag("forward_credential"),
        };
        Some(Self {
            host,
            methods,
            path_prefix,
            rule: rule.parse(fields, prefix),
        })
    }

    fn route(self) -> Route {
        Route {
            host: self.host,
            methods: self.methods,
            path_prefix: self.path_prefix,
            rule: Arc::new(self.rule),
        }
    }
}

/// Reads the fields of one route and notes the invalid ones.
struct Reader<'a> {
    route: &'a Mapping,
    prefix: &'a str,
    fields: &'a mut Fields,
}

impl Reader<'_> {
    fn note(&mut self, field: &str, description: &str) {
        self.fields
            .note(format!("{}{field}", self.prefix), description);
    }

    fn refuse_unknown(&mut self) {
        const KNOWN: [&str; 10] = [
            "host",
            "methods",
            "path_prefix",
            "tenant",
            "scopes",
            "any_scopes",
            "audience",
            "header",
            "query_parameter",
            "forward_credential",
        ];
        let known = |name: &Value| name.as_str().is_some_and(|name| KNOWN.contains(&name));
        if !self.route.keys().all(known) {
            let known = KNOWN.join(", ");
            let all = self.prefix.trim_end_matches('.');
            self.fields.note(all, format!("may have {known} only"));
        }
    }

    fn text(&mut self, field: &str) -> Option<String> {
        let value = self.route.get(field)?;
        let text = value.as_str();
        if text.is_none() {
            self.note(field, "must be a text");
        }
        text.map(str::to_owned)
    }

    /// Returns the texts of a list, which must not be empty if it is there.
    fn texts(&mut self, field: &str) -> Vec<String> {
        let Some(value) = self.route.get(field) else {
            return Vec::new();
        };
        let texts = value.as_sequence().and_then(|items| {
            let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<Vec<_>>>()
        });
        texts.filter(|texts| !texts.is_empty()).unwrap_or_else(|| {
            self.note(field, "must be a list of one text or more");
            Vec::new()
        })
    }

    fn flag(&mut self, field: &str) -> bool {
        let Some(value) = self.route.get(field) else {
            return false;
        };
        value.as_bool().unwrap_or_else(|| {
            self.note(field, "must be true or false");
            false
        })
    }

    fn host(&mut self) -> Host {
        let Some(pattern) = self.text("host") else {
            return Host::Any;
        };
        Host::parse(&pattern).unwrap_or_else(|| {
            self.note(
                "host",
                "must be a name without a port, such as api.example.com or *.example.com",
            );
            Host::Any
        })
    }

    fn methods(&mut self) -> Vec<String> {
        let methods = self.texts("methods");
        let plain = |method: &String| {
            (1..=32).contains(&method.len()) && method.bytes().all(|byte| byte.is_ascii_uppercase())
        };
        if methods.len() > METHODS_MAX || !methods.iter().all(plain) {
            self.note(
                "methods",
                "must have at most 16 methods in upper case, such as GET",
            );
        }
        methods
    }

    fn path_prefix(&mut self) -> Vec<Vec<u8>> {
        let text = self.text("path_prefix").unwrap_or_default();
        path::segments(text.as_bytes()).unwrap_or_else(|| {
            let description = "must be a path that begins with /, without empty or dotted segments";
            self.note("path_prefix", description);
            Vec::new()
        })
    }
}
