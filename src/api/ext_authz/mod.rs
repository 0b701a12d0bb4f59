//! Envoy's external authorization: decides about HTTP requests before Envoy forwards them.
//!
//! A request needs a rule: from the configuration of its Envoy route, or else from the routes file.
//! Without a rule it is denied. If no decision is possible, the response is a gRPC error, which Envoy
//! answers by its `status_on_error`; it is never a denial and never OK.

mod attributes;
mod encode;
mod path;
mod presented;
mod redact;
mod route_table;
mod rule;

use std::{borrow::Cow, sync::Arc};

use tokio::sync::watch;
use tonic::Status;
use tracing::warn;

use self::{attributes::Attributes, presented::Presentation, proto::CheckRequest, rule::Rule};
use super::{
    Api,
    caller::Asker,
    convert::{request::Fields, status::Invalid},
    proto::Reason,
    validate::refuse_forbidden,
};
use crate::{
    domain::{caller::Right, key_policy::AccessRequest, tenant::SYSTEM},
    metrics::LogLimit,
    service::validator::{Decision, ValidationRequest},
};

pub use encode::Verdict;
pub use route_table::{ROUTES_MAX, RouteTable};

/// The number of the decision that a request has no rule, after all reasons of Validate.
pub const NO_RULE: usize = Reason::InsufficientScope as usize + 1;
/// The name of that decision.
pub const NO_RULE_NAME: &str = "NO_RULE";

/// The Rust code generated from the part of Envoy's API that gatekey uses.
#[allow(clippy::pedantic, missing_docs, reason = "generated")]
pub mod proto {
    tonic::include_proto!("envoy.service.auth.v3");
}

/// The rules for the requests of Envoy.
pub struct GatewayRules {
    /// The current content of the routes file.
    routes: watch::Receiver<Arc<RouteTable>>,
    /// Limits the log lines about Checks that Envoy's configuration makes invalid.
    invalid: Arc<LogLimit>,
}

impl GatewayRules {
    /// Creates the rules from the current content of the routes file.
    #[must_use]
    pub fn new(routes: watch::Receiver<Arc<RouteTable>>) -> Self {
        Self {
            routes,
            invalid: LogLimit::new(|suppressed| {
                warn!(suppressed, "more invalid Checks came within 10 s");
            }),
        }
    }

    /// Returns the rule for a request, or `None` if there is none.
    fn find(&self, attributes: &Attributes<'_>) -> Result<Option<Arc<Rule>>, Invalid> {
        if let Some(rule) = Rule::of_extensions(attributes.extensions())? {
            return Ok(Some(Arc::new(rule)));
        }
        let routes = self.routes.borrow();
        let (host, method, path) = (attributes.host(), attributes.method(), attributes.path());
        Ok(routes.find(host, method, path))
    }

    /// Logs an invalid Check, at a bounded rate, because its caller gets only an error.
    fn invalid(&self, invalid: Invalid) -> Status {
        let status = Status::from(invalid);
        if self.invalid.admit() {
            warn!(
                error = status.message(),
                "Check failed; Envoy rejects the request: correct Envoy's configuration"
            );
        }
        status
    }
}

impl Api {
    /// Handles a Check from `asker`.
    ///
    /// # Errors
    /// If the caller is not permitted to validate, the rule or the request is invalid, or no
    /// decision was possible.
    pub(super) async fn answer_check(
        &self,
        asker: &Asker,
        request: &CheckRequest,
    ) -> Result<Verdict, Status> {
        let rules = &self.gateway_rules;
        let invalid = |invalid| rules.invalid(invalid);
        let attributes = Attributes::of(request).map_err(invalid)?;
        let Some(rule) = rules.find(&attributes).map_err(invalid)? else {
            return Ok(Verdict::no_rule(&attributes));
        };
        let mut fields = Fields::default();
        let source = attributes.source();
        let client_ip = match &source {
            Cow::Borrowed("") => None,
            address => fields.ip("attributes.source.address", address),
        };
        fields.check().map_err(invalid)?;
        refuse_forbidden(asker, rule.tenant())?;
        let credential = match Presentation::find(&rule, &attributes) {
            Presentation::One(credential) => credential,
            Presentation::None => {
                return Ok(Verdict::of(&Decision::Missing, &rule, &attributes));
            }
            Presentation::Malformed => {
                return Ok(Verdict::of(&Decision::Malformed, &rule, &attributes));
            }
        };
        let question = ValidationRequest {
            credential: &credential,
            in_view: &|tenant| rule.covers(tenant) && asker.right(tenant) == Right::Granted,
            ask: AccessRequest {
                required_scopes: &rule.required_scopes,
                any_scopes: &rule.any_scopes,
                audience: rule.audience.as_deref(),
                client_ip,
            },
        };
        let decision = self.validator.validate(&question).await?;
        self.note_use(&decision, client_ip);
        Ok(Verdict::of(&decision, &rule, &attributes))
    }
}

impl Rule {
    /// Returns whether keys of this tenant are accepted. The keys of tenant `system` are those of
    /// gatekey's own callers, so a rule for every tenant does not accept them.
    fn covers(&self, tenant: &str) -> bool {
        match self.tenant() {
            Some(only) => only == tenant,
            None => tenant != SYSTEM,
        }
    }
}
