//! A real Envoy in front of the services, which asks gatekey.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::upstream;
use crate::support::tool;

const DEADLINE: Duration = Duration::from_mins(1);

/// A running Envoy, killed on drop.
pub struct Envoy {
    child: Child,
    folder: TempDir,
    /// The address that clients use.
    pub addr: SocketAddr,
    admin: SocketAddr,
}

/// A response of Envoy.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Parses a whole response in HTTP/1.1.
    fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a whole response");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("a header");
            (name.to_lowercase(), value.to_owned())
        };
        Self {
            status: status.expect("a status").parse().expect("a number"),
            headers: lines.map(header).collect(),
            body: body.to_owned(),
        }
    }

    /// Returns the value of a response header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter().filter(|(it, _)| it == name);
        named.next().map(|(_, value)| &**value)
    }

    /// Returns the value of a header that the service behind Envoy received.
    pub fn received(&self, name: &str) -> Option<String> {
        Some(self.json()["headers"][name].as_str()?.to_owned())
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// Returns the code of a denial.
    pub fn code(&self) -> String {
        let code = &self.json()["error"]["code"];
        code.as_str().expect("a code").to_owned()
    }
}

/// The parts of the configuration in which tests differ.
pub struct Setup {
    /// Where gatekey is.
    pub gatekey: SocketAddr,
    /// The credential of Envoy.
    pub credential: String,
    /// The routes: a path prefix, a cluster, and the context extensions, if there are any.
    pub routes: Vec<(&'static str, &'static str, Json)>,
    /// Additions to the filter.
    pub filter: Json,
    /// The filters instead of the one that asks gatekey.
    pub filters: Option<Json>,
}

impl Setup {
    /// Starts the services and Envoy.
    pub async fn start(self) -> Envoy {
        let clusters = [
            cluster("orders", upstream::http1().await, false),
            cluster("reports", upstream::http2().await, true),
            cluster("grpc", upstream::grpc().await, true),
            cluster("gatekey", self.gatekey, true),
        ];
        let config = json!({
            "admin": { "address": address(SocketAddr::from(([127, 0, 0, 1], 0))) },
            "static_resources": {
                "listeners": [{
                    "name": "web",
                    "address": address(SocketAddr::from(([127, 0, 0, 1], 0))),
                    "filter_chains": [{ "filters": [self.connection_manager()] }],
                }],
                "clusters": clusters,
            },
        });
        Envoy::start(&config, &self.credential).await
    }

    fn connection_manager(&self) -> Json {
        let mut filter = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
            "transport_api_version": "V3",
            "failure_mode_allow": false,
            "status_on_error": { "code": "ServiceUnavailable" },
            "grpc_service": {
                "envoy_grpc": { "cluster_name": "gatekey" },
                "timeout": "5s",
                "initial_metadata": [
                    { "key": "authorization", "value": "Bearer %ENVIRONMENT(GATEKEY_CREDENTIAL)%" },
                ],
            },
        });
        let more = self.filter.as_object().cloned().unwrap_or_default();
        filter.as_object_mut().expect("an object").extend(more);
        let usual = || json!([{ "name": "envoy.filters.http.ext_authz", "typed_config": filter }]);
        let filters = self.filters.clone().unwrap_or_else(usual);
        let mut filters = filters.as_array().cloned().expect("a list");
        filters.push(json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            },
        }));
        let routes: Vec<_> = self
            .routes
            .iter()
            .map(|it| match &self.filters {
                None => route(it.0, it.1, &it.2),
                Some(_) => route(it.0, it.1, &Json::Null),
            })
            .collect();
        let format = "%DYNAMIC_METADATA(envoy.filters.http.ext_authz)%\n";
        json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "web",
                "codec_type": "AUTO",
                "use_remote_address": true,
                "access_log": [{
                    "name": "envoy.access_loggers.file",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                        "path": "access.log",
                        "log_format": { "text_format_source": { "inline_string": format } },
                    },
                }],
                "route_config": {
                    "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
                },
                "http_filters": filters,
            },
        })
    }
}

fn route(prefix: &str, cluster: &str, extensions: &Json) -> Json {
    let mut route = json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster } });
    if !extensions.is_null() {
        route["typed_per_filter_config"] = json!({
            "envoy.filters.http.ext_authz": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute",
                "check_settings": { "context_extensions": extensions },
            },
        });
    }
    route
}

fn cluster(name: &str, addr: SocketAddr, http2: bool) -> Json {
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(addr) } }] }],
        },
    });
    if http2 {
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        });
    }
    cluster
}

fn address(addr: SocketAddr) -> Json {
    json!({ "socket_address": { "address": addr.ip().to_string(), "port_value": addr.port() } })
}

impl Envoy {
    /// Starts Envoy and waits until it takes requests.
    pub async fn start(config: &Json, credential: &str) -> Self {
        let folder = TempDir::with_prefix("envoy-").expect("a temporary folder");
        let file = |name: &str| folder.path().join(name);
        fs::write(file("envoy.json"), config.to_string()).expect("the folder takes files");
        let log = fs::File::create(file("envoy.log")).expect("the folder takes files");
        let envoy = tokio::task::spawn_blocking(tool::envoy);
        let child = Command::new(envoy.await.expect("a tool"))
            .args(["--disable-hot-restart", "--concurrency", "2"])
            .args(["-l", "info", "-c", "envoy.json"])
            .args(["--admin-address-path", "admin.txt"])
            .env("GATEKEY_CREDENTIAL", credential)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy is there");
        let mut envoy = Self {
            child,
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            folder,
        };
        let listening = envoy.listening();
        let (admin, addr) = timeout(DEADLINE, listening).await.unwrap_or_else(|_| {
            panic!("Envoy does not start: {}", envoy.log());
        });
        (envoy.admin, envoy.addr) = (admin, addr);
        envoy
    }

    /// Waits until Envoy has told its addresses and is live.
    async fn listening(&self) -> (SocketAddr, SocketAddr) {
        loop {
            sleep(Duration::from_millis(50)).await;
            let admin = fs::read_to_string(self.file("admin.txt")).unwrap_or_default();
            let Ok(admin) = admin.trim().parse() else {
                continue;
            };
            let ready = request(admin, "GET /ready HTTP/1.1\r\nHost: x\r\n").await;
            if ready.is_none_or(|ready| ready.status != 200) {
                continue;
            }
            let listeners = request(admin, "GET /listeners HTTP/1.1\r\nHost: x\r\n").await;
            let listeners = listeners.map(|it| it.body).unwrap_or_default();
            let line = listeners.lines().find_map(|line| {
                let at = line.rfind("127.0.0.1:")?;
                line[at..].split_whitespace().next()?.parse().ok()
            });
            if let Some(addr) = line {
                return (admin, addr);
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns what Envoy has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("envoy.log")).unwrap_or_default()
    }

    /// Returns the dynamic metadata of the last request that Envoy has logged, once its reason is
    /// `reason`.
    pub async fn metadata(&self, reason: &str) -> Json {
        let logged = async {
            loop {
                let log = fs::read_to_string(self.file("access.log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or("null");
                let mut last: Json = serde_json::from_str(last).unwrap_or_default();
                if last["reason"] == reason {
                    // Envoy adds how long the filter took.
                    let fields = last.as_object_mut().expect("fields");
                    fields.remove("ext_authz_duration");
                    return last;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(DEADLINE, logged).await.expect("it is logged")
    }

    /// Sends a GET in HTTP/1.1 with these lines of headers.
    pub async fn get(&self, target: &str, headers: &[String]) -> Answer {
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: api.example.com\r\n");
        for line in headers {
            head.push_str(line);
            head.push_str("\r\n");
        }
        let answer = timeout(DEADLINE, request(self.addr, &head)).await;
        answer.expect("it answers").expect("it answers")
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Sends this head and returns the response, or `None` if there is nobody.
async fn request(addr: SocketAddr, head: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    let head = format!("{head}Connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(Answer::parse(&String::from_utf8_lossy(&answer)))
}
