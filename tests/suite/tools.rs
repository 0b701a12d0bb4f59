//! gatekey as other people's tools meet it, which have none of our code: grpcurl, Python, and whatever else asks the
//! server itself what it serves and how it is.

use std::{fs, path::Path, process::Stdio, time::Duration};

use prost::Message as _;
use prost_types::FileDescriptorProto;
use serde_json::{Value as Json, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    task::JoinSet,
    time,
};
use tonic::{
    Code, Status,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};

use crate::support::{Gatekey, tool};

const DEADLINE: Duration = Duration::from_secs(20);

/// All that is served on the one port.
const SERVICES: [&str; 7] = [
    "gatekey.v1.EventService",
    "gatekey.v1.KeyService",
    "gatekey.v1.OwnerService",
    "gatekey.v1.TenantService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_lists_every_service_to_anyone() {
    let server = Gatekey::sqlite().start().await;
    let listed = grpcurl(&["-plaintext", &server.addr().to_string(), "list"]).await;
    assert_eq!(listed.lines().collect::<Vec<_>>(), SERVICES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_describes_everything_with_the_comments_of_the_proto_files() {
    let server = Gatekey::sqlite().start().await;
    let addr = server.addr().to_string();
    let sources = proto_files();

    let mut descriptions = JoinSet::new();
    for symbol in sources.lines().filter_map(symbol) {
        let (addr, symbol) = (addr.clone(), format!("gatekey.v1.{symbol}"));
        descriptions
            .spawn(async move { grpcurl(&["-plaintext", &addr, "describe", &symbol]).await });
    }
    let descriptions = descriptions.join_all().await;
    assert!(descriptions.len() > 40, "the proto files were found");

    let described = descriptions.concat();
    let described: Vec<_> = described.lines().map(str::trim).collect();
    for comment in sources
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("//"))
    {
        assert!(described.contains(&comment), "nowhere: {comment}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_leads_a_key_through_its_life_in_json() {
    let server = Gatekey::sqlite().start().await;

    let created = call(
        &server,
        "CreateKey",
        &json!({
            "tenantId": "default",
            "ownerId": "alice",
            "label": "from a shell",
            "scopes": ["jobs:*"],
            "audiences": ["billing"],
            "allowedCidrs": ["10.0.0.0/8"],
            "metadata": {"team": "búho"},
            "ttl": "3600s",
        }),
    )
    .await;
    let plaintext = created["plaintextKey"].as_str().expect("a plaintext");
    let (key, id) = (&created["key"], &created["key"]["keyId"]);
    assert_eq!(key["state"], "KEY_STATE_ACTIVE");
    assert_eq!(key["createdBy"], "admin");
    assert_eq!(key["metadata"], json!({"team": "búho"}));
    assert!(key["expiresAt"].is_string(), "{key}");

    let question = json!({
        "key": plaintext,
        "requiredScopes": ["jobs:read"],
        "audience": "billing",
        "clientIp": "10.1.2.3",
    });
    let allowed = call(&server, "Validate", &question).await;
    assert_eq!(allowed["allowed"], true);
    assert_eq!(allowed["reason"], "REASON_ALLOWED");
    assert_eq!(allowed["httpStatus"], 200);
    assert_eq!(allowed["keyId"], *id);
    assert_eq!(allowed["scopes"], json!(["jobs:*"]));
    assert_eq!(allowed["metadata"], key["metadata"]);
    assert_eq!(allowed["expiresAt"], key["expiresAt"]);

    let listed = call(&server, "ListKeys", &json!({"tenantId": "default"})).await;
    assert_eq!(unused(listed["keys"].clone()), json!([unused(key.clone())]));
    assert_eq!(listed["nextPageToken"], "");
    assert!(
        !listed.to_string().contains(plaintext),
        "a list tells a key"
    );

    let revoke = json!({"tenantId": "default", "keyId": id, "reason": "lost"});
    let revoked = call(&server, "RevokeKey", &revoke).await;
    assert_eq!(revoked["key"]["state"], "KEY_STATE_REVOKED");
    assert_eq!(revoked["key"]["revokeReason"], "lost");
    assert_eq!(
        revoked["enforcement"]["state"],
        "ENFORCEMENT_STATE_ENFORCED"
    );

    let refused = call(&server, "Validate", &question).await;
    assert_eq!(refused["allowed"], false);
    assert_eq!(refused["reason"], "REASON_REVOKED");
    assert_eq!(refused["httpStatus"], 401);
    let states = json!({"tenantId": "default", "states": ["KEY_STATE_REVOKED"]});
    let listed = call(&server, "ListKeys", &states).await;
    assert_eq!(
        unused(listed["keys"].clone()),
        json!([unused(revoked["key"].clone())])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_shows_the_details_of_every_error() {
    let server = Gatekey::sqlite().start().await;

    let nothing = refused(&server, "CreateKey", &json!({"tenantId": "Bad!"})).await;
    assert_eq!(nothing.code, "InvalidArgument");
    assert_eq!(nothing.detail("ErrorInfo")["reason"], "INVALID_FIELDS");
    let violations = &nothing.detail("BadRequest")["fieldViolations"];
    let violations = violations.as_array().expect("violations");
    let fields: Vec<_> = violations
        .iter()
        .map(|violation| &violation["field"])
        .collect();
    assert_eq!(fields, ["tenant_id", "owner_id", "label", "scopes"]);

    let first = json!({
        "tenantId": "default", "ownerId": "alice", "label": "once", "scopes": ["*"], "requestId": "r1",
    });
    let created = call(&server, "CreateKey", &first).await;
    let again = refused(&server, "CreateKey", &first).await;
    assert_eq!(again.code, "AlreadyExists");
    let info = again.detail("ErrorInfo");
    assert_eq!(info["reason"], "REQUEST_REPEATED");
    assert_eq!(info["metadata"]["key_id"], created["key"]["keyId"]);
    assert_eq!(
        again.detail("ResourceInfo")["resourceName"],
        created["key"]["keyId"]
    );

    let unknown = json!({"keyId": "key_0000000000000000"});
    let unknown = refused(&server, "GetKey", &unknown).await;
    assert_eq!(unknown.code, "NotFound");
    assert_eq!(unknown.detail("ErrorInfo")["reason"], "KEY_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcurl_without_a_credential_is_told_which_one_is_missing() {
    let server = Gatekey::sqlite().start().await;
    let error = asked(&server, &[], "gatekey.v1.KeyService/Validate", &json!({})).await;
    let error = error.expect_err("nobody is known without a credential");
    assert_eq!(error.code, "Unauthenticated");
    assert_eq!(error.detail("ErrorInfo")["reason"], "CREDENTIAL_MISSING");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_told_to_anyone_by_service() {
    let server = Gatekey::sqlite().start().await;
    server.wait_for_log("\"ready\"").await;
    let check = async |service| {
        let method = "grpc.health.v1.Health/Check";
        asked(&server, &[], method, &json!({"service": service})).await
    };
    for service in ["", "gatekey.v1.KeyService"] {
        let health = check(service).await.expect("it is known");
        assert_eq!(health, json!({"status": "SERVING"}), "{service:?}");
    }
    let unknown = check("gatekey.v1.NoService")
        .await
        .expect_err("there is none");
    assert_eq!(unknown.code, "NotFound");
    assert_eq!(unknown.detail("ErrorInfo")["domain"], "gatekey");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_health_is_told_of_the_end() {
    let server = Gatekey::sqlite().start().await;
    server.wait_for_log("\"ready\"").await;
    let mut watch = Watch::start(&server, "gatekey.v1.KeyService");
    assert_eq!(watch.status().await.as_deref(), Some("SERVING"));
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(watch.status().await.as_deref(), Some("NOT_SERVING"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_health_does_not_hold_up_the_end() {
    let server = Gatekey::sqlite().env("GATEKEY_DRAIN", "50s").start().await;
    let mut watches = ["", "gatekey.v1.KeyService"].map(|service| Watch::start(&server, service));
    for watch in &mut watches {
        assert!(watch.status().await.is_some());
    }
    let stopped = time::timeout(DEADLINE, server.stop()).await;
    assert!(
        stopped.is_ok(),
        "it waits for streams that never end by themselves"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_reflections_tell_all_services_and_their_files_to_anyone() {
    let server = Gatekey::sqlite().start().await;
    for version in ["v1", "v1alpha"] {
        let mut reflection = Reflection::of(&server, version).await;
        let services = reflection
            .ask(MessageRequest::ListServices(String::new()))
            .await;
        let Ok(MessageResponse::ListServicesResponse(services)) = services else {
            panic!("{version}: {services:?}");
        };
        let mut services: Vec<_> = services
            .service
            .into_iter()
            .map(|service| service.name)
            .collect();
        services.sort();
        assert_eq!(services, SERVICES, "{version}");

        for service in SERVICES {
            let files = reflection
                .ask(MessageRequest::FileContainingSymbol(service.to_owned()))
                .await;
            let Ok(MessageResponse::FileDescriptorResponse(files)) = files else {
                panic!("{version}, {service}: {files:?}");
            };
            let file =
                FileDescriptorProto::decode(&*files.file_descriptor_proto[0]).expect("a file");
            let package = service.rsplit_once('.').expect("a package").0;
            assert_eq!(file.package(), package);
            for import in file.dependency {
                let found = reflection.ask(MessageRequest::FileByFilename(import)).await;
                assert!(found.is_ok(), "{version}, {service}: {found:?}");
            }
        }

        let none = MessageRequest::FileContainingSymbol("gatekey.v1.NoService".to_owned());
        let none = reflection
            .ask(none)
            .await
            .expect_err("there is no such service");
        assert_eq!(none.code(), Code::NotFound, "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_python_client_without_our_code_issues_and_validates_a_key() {
    let server = Gatekey::sqlite().start().await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/suite/reflected.py");
    let printed = tokio::task::block_in_place(|| {
        let mut python = tool::python_with_grpc();
        python.arg(script).arg(server.addr().to_string());
        tool::run(python.env("GATEKEY_TOKEN", server.admin_token()))
    });
    let printed: Vec<Json> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("one JSON object a line"))
        .collect();
    let [created, allowed, refused] = &printed[..] else {
        panic!("{printed:?}");
    };
    assert_eq!(created["key"]["ownerId"], "guido");
    assert_eq!(allowed["allowed"], true);
    assert_eq!(allowed["keyId"], created["key"]["keyId"]);
    assert_eq!(allowed["metadata"], json!({"team": "búho"}));
    assert_eq!(refused["reason"], "REASON_INSUFFICIENT_SCOPE");
    assert_eq!(refused["missingScopes"], json!(["users:read"]));
}

/// An error as grpcurl prints it.
#[derive(Debug)]
struct Shown {
    code: String,
    details: Vec<Json>,
}

impl Shown {
    /// Reads what grpcurl prints: `Code: …`, `Message: …`, and a line of JSON for each detail.
    fn parse(printed: &str) -> Self {
        let code = printed
            .lines()
            .find_map(|line| line.trim().strip_prefix("Code: "));
        let details = printed.lines().filter_map(|line| line.split_once(")\t"));
        Self {
            code: code
                .unwrap_or_else(|| panic!("no status:\n{printed}"))
                .to_owned(),
            details: details
                .map(|(_, detail)| serde_json::from_str(detail).expect("a detail is JSON"))
                .collect(),
        }
    }

    /// The one detail of type `google.rpc.<name>`.
    fn detail(&self, name: &str) -> &Json {
        let of_type = format!("type.googleapis.com/google.rpc.{name}");
        let mut found = self
            .details
            .iter()
            .filter(|detail| detail["@type"] == of_type);
        match (found.next(), found.next()) {
            (Some(detail), None) => detail,
            _ => panic!("not one {name}: {self:?}"),
        }
    }
}

/// Calls a method of KeyService as the admin, which must succeed.
async fn call(server: &Gatekey, method: &str, message: &Json) -> Json {
    let answer = as_admin(server, method, message).await;
    answer.unwrap_or_else(|error| panic!("{method}: {error:?}"))
}

/// A key, or a list of keys, without their last uses, which come by themselves within seconds.
fn unused(mut shown: Json) -> Json {
    if let Some(keys) = shown.as_array_mut() {
        return keys.drain(..).map(unused).collect();
    }
    let key = shown.as_object_mut().expect("a key is an object");
    key.retain(|field, _| !field.starts_with("lastUsed"));
    shown
}

/// Calls a method of KeyService as the admin, which must fail.
async fn refused(server: &Gatekey, method: &str, message: &Json) -> Shown {
    let answer = as_admin(server, method, message).await;
    answer.expect_err("it breaks a rule")
}

async fn as_admin(server: &Gatekey, method: &str, message: &Json) -> Result<Json, Shown> {
    let bearer = format!("authorization: Bearer {}", server.admin_token());
    let method = format!("gatekey.v1.KeyService/{method}");
    asked(server, &["-H", &bearer], &method, message).await
}

/// Asks with these further arguments; every field of the answer is shown, also those that are not set.
async fn asked(
    server: &Gatekey,
    arguments: &[&str],
    method: &str,
    message: &Json,
) -> Result<Json, Shown> {
    let output = Command::new(tokio::task::block_in_place(tool::grpcurl))
        .args([
            "-plaintext",
            "-emit-defaults",
            "-max-time",
            "20",
            "-d",
            &message.to_string(),
        ])
        .args(arguments)
        .args([&server.addr().to_string(), method])
        .output()
        .await
        .expect("grpcurl runs");
    if output.status.success() {
        Ok(serde_json::from_slice(&output.stdout).expect("an answer is JSON"))
    } else {
        Err(Shown::parse(&String::from_utf8_lossy(&output.stderr)))
    }
}

/// What grpcurl prints, asked something that must succeed.
async fn grpcurl(arguments: &[&str]) -> String {
    let output = Command::new(tokio::task::block_in_place(tool::grpcurl))
        .args(arguments)
        .output()
        .await
        .expect("grpcurl runs");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{printed}{stderr}");
    printed
}

/// grpcurl, watching the health of a service.
struct Watch {
    lines: Lines<BufReader<ChildStdout>>,
    _process: Child, // killed on drop
}

impl Watch {
    fn start(server: &Gatekey, service: &str) -> Self {
        let mut process = Command::new(tokio::task::block_in_place(tool::grpcurl))
            .args(["-plaintext", "-d", &json!({"service": service}).to_string()])
            .args([&server.addr().to_string(), "grpc.health.v1.Health/Watch"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("grpcurl runs");
        let stdout = process.stdout.take().expect("stdout is a pipe");
        Self {
            lines: BufReader::new(stdout).lines(),
            _process: process,
        }
    }

    /// The next status that arrives; `None`: the stream has ended.
    async fn status(&mut self) -> Option<String> {
        let next = time::timeout(DEADLINE, async {
            while let Some(line) = self.lines.next_line().await.expect("a pipe") {
                if let Some(status) = line.trim().strip_prefix("\"status\": ") {
                    return Some(status.trim_matches('"').to_owned());
                }
            }
            None
        });
        next.await.expect("a status, or the end, in time")
    }
}

/// A small client of reflection; v1 and v1alpha differ in nothing but their name.
struct Reflection {
    client: Grpc<Channel>,
    path: PathAndQuery,
}

impl Reflection {
    async fn of(server: &Gatekey, version: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.addr()));
        let channel = endpoint.expect("an address is a URL").connect().await;
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        Self {
            client: Grpc::new(channel.expect("a server that serves takes connections")),
            path: path.parse().expect("a path"),
        }
    }

    /// Asks one thing, without a credential.
    async fn ask(&mut self, question: MessageRequest) -> Result<MessageResponse, Status> {
        let question = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(question),
        };
        let codec = ProstCodec::<ServerReflectionRequest, ServerReflectionResponse>::default();
        self.client.ready().await.expect("the connection stands");
        let stream = tokio_stream::once(question);
        let request = tonic::Request::new(stream);
        let answers = self
            .client
            .streaming(request, self.path.clone(), codec)
            .await?;
        let answer = answers
            .into_inner()
            .message()
            .await?
            .expect("an answer to a question");
        Ok(answer.message_response.expect("an answer says something"))
    }
}

/// The proto files, one after the other.
fn proto_files() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto/gatekey/v1");
    let files = fs::read_dir(folder).expect("the proto files are there");
    let files = files.map(|file| fs::read_to_string(file.expect("a file").path()).expect("text"));
    files.collect()
}

/// The name of the service, message or enum that a line of a proto file opens.
fn symbol(line: &str) -> Option<&str> {
    let mut words = line.split(' ');
    matches!(words.next()?, "service" | "message" | "enum")
        .then(|| words.next())
        .flatten()
}
