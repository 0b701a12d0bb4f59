//! The example services of `docs/validating.md` and the examples for web frameworks against the real server: what they answer for each decision, without a
//! decision, over TLS, and while one of two replicas is gone.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    process::Child,
    sync::watch,
    task::block_in_place,
    time::timeout,
};

use crate::support::{
    Authority, Database, Gatekey,
    client::{new_key, texts},
    names, tool,
};

const PAGE: &str = include_str!("../../docs/validating.md");
const DEADLINE: Duration = Duration::from_mins(1);

/// A running example, killed on drop.
struct Example {
    addr: String,
    log: PathBuf,
    _child: Child,
}

/// How an example is built and told where gatekey is.
#[derive(Clone, Copy)]
struct Language {
    /// Builds the example in this empty folder, and returns the command that runs it.
    build: fn(&Path) -> Command,
    /// The target of one server with TLS, before `localhost:PORT`.
    tls_scheme: &'static str,
    /// The target of several servers without TLS.
    target: fn(&Replicas) -> String,
}

const PYTHON: Language = Language {
    build: build_python,
    tls_scheme: "dns:///",
    target: dns_target,
};
const NODE: Language = Language {
    build: build_node,
    tls_scheme: "dns:///",
    target: ipv4_target,
};
const GO: Language = Language {
    build: build_go,
    tls_scheme: "dns:///",
    target: dns_target,
};
const RUST: Language = Language {
    build: build_rust,
    tls_scheme: "https://",
    target: urls,
};

const FASTAPI: Language = Language {
    build: build_fastapi,
    ..PYTHON
};
const EXPRESS: Language = Language {
    build: build_express,
    ..NODE
};

/// Where gatekey's replicas are: all on one port, at addresses that a DNS server knows by the name `gatekey.test`.
struct Replicas {
    addrs: Vec<SocketAddr>,
    dns: SocketAddr,
}

fn dns_target(replicas: &Replicas) -> String {
    let port = replicas.addrs[0].port();
    format!("dns://{}/gatekey.test:{port}", replicas.dns)
}

/// gRPC for Node.js asks no other DNS server than the system's.
fn ipv4_target(replicas: &Replicas) -> String {
    let addrs: Vec<_> = replicas.addrs.iter().map(ToString::to_string).collect();
    format!("ipv4:{}", addrs.join(","))
}

fn urls(replicas: &Replicas) -> String {
    let urls = replicas.addrs.iter().map(|addr| format!("http://{addr}"));
    urls.collect::<Vec<_>>().join(",")
}

/// A path in the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn protoc(out: &Path, options: &[&str]) -> Command {
    let mut protoc = tool::python_with_grpc_tools();
    protoc
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(repository("proto"))
        .args(options)
        .args(["gatekey/v1/key.proto", "gatekey/v1/key_service.proto"])
        .current_dir(out);
    protoc
}

fn copy(source: &str, folder: &Path) -> PathBuf {
    let source = repository(source);
    let copy = folder.join(source.file_name().expect("a file"));
    fs::copy(source, &copy).expect("the folder takes files");
    copy
}

fn build_python(folder: &Path) -> Command {
    let options = ["--python_out=.", "--grpc_python_out=."];
    tool::run(&mut protoc(folder, &options));
    let mut python = tool::python_with_grpc_tools();
    python.arg(copy("examples/validating/python/service.py", folder));
    python
}

fn build_node(folder: &Path) -> Command {
    let package_json = repository("examples/validating/node/package.json");
    let (node, modules) = tool::node_with("grpc-js-1.14.7", &package_json);
    let modules = modules.join("node_modules");
    symlink(modules, folder.join("node_modules")).expect("the folder takes links");
    let mut command = Command::new(node);
    command
        .arg(copy("examples/validating/node/service.mjs", folder))
        .env("GATEKEY_PROTO", repository("proto"));
    command
}

fn build_fastapi(folder: &Path) -> Command {
    let options = ["--python_out=.", "--grpc_python_out=."];
    tool::run(&mut protoc(folder, &options));
    copy("examples/python/gatekey_fastapi.py", folder);
    let mut python = tool::python_with_fastapi();
    python.arg(copy("examples/python/service.py", folder));
    python
}

fn build_express(folder: &Path) -> Command {
    let package_json = repository("examples/node/package.json");
    let (node, modules) = tool::node_with("express-5.3.0", &package_json);
    let modules = modules.join("node_modules");
    symlink(modules, folder.join("node_modules")).expect("the folder takes links");
    copy("examples/node/gatekey.mjs", folder);
    let mut command = Command::new(node);
    command
        .arg(copy("examples/node/service.mjs", folder))
        .env("GATEKEY_PROTO", repository("proto"));
    command
}

/// Without modules, because those come from a proxy: Debian's sources are in a GOPATH.
fn build_go(folder: &Path) -> Command {
    let go = tool::go();
    let package = folder.join("src/example.org/validating");
    fs::create_dir_all(&package).expect("the folder takes files");
    copy("examples/validating/go/main.go", &package);
    let plugin = |name| format!("--plugin={}", go.join("usr/bin").join(name).display());
    let plugins = [plugin("protoc-gen-go"), plugin("protoc-gen-go-grpc")];
    let options = [&plugins[0], &plugins[1], "--go_out=.", "--go-grpc_out=."];
    tool::run(&mut protoc(&package, &options));
    let root = go.join("usr/lib/go-1.24");
    let path = format!(
        "{}:{}",
        folder.display(),
        go.join("usr/share/gocode").display()
    );
    let compile = |arguments: &[&str]| {
        let mut command = Command::new(root.join("bin/go"));
        command
            .args(arguments)
            .envs([
                ("GO111MODULE", "off"),
                ("CGO_ENABLED", "0"),
                ("GOPATH", &*path),
            ])
            .env("GOROOT", &root)
            .env("GOCACHE", repository("target/tools/go-cache"))
            .current_dir(&package);
        tool::run(&mut command);
    };
    // One at a time, so that the second build finds the packages of the first one in the cache.
    let lock = fs::File::create(repository("target/tools/go-cache.lock")).expect("a lock file");
    lock.lock().expect("the lock is free at some time");
    compile(&["vet", "."]);
    compile(&["build", "-o", "service", "."]);
    let unformatted = tool::run(
        Command::new(root.join("bin/gofmt"))
            .args(["-l", "main.go"])
            .current_dir(&package),
    );
    assert_eq!(unformatted, "");
    Command::new(package.join("service"))
}

/// Cargo builds the examples before it runs all tests, but not before it runs only some of them.
fn build_rust(_: &Path) -> Command {
    let server = Path::new(env!("CARGO_BIN_EXE_gatekey"));
    let folder = server.parent().expect("a binary is in a folder");
    let program = folder.join("examples/validating");
    let changed = |path: &Path| fs::metadata(path).and_then(|it| it.modified()).ok();
    let source = changed(&repository("examples/validating/rust/src/main.rs"));
    assert!(
        changed(&program) >= source,
        "the example is not built: run `cargo build --example validating` first"
    );
    Command::new(program)
}

impl Language {
    /// Builds and starts the example in a folder, where its log is `example.log`.
    async fn start(&self, folder: &Path, target: &str, settings: &[(&str, &str)]) -> Example {
        let work = folder.join("example");
        fs::create_dir(&work).expect("the folder takes folders");
        let log = folder.join("example.log");
        let mut command = block_in_place(|| (self.build)(&work));
        command
            .envs(settings.iter().copied())
            .env("GATEKEY_TARGET", target)
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("the folder takes files"));
        let mut child = tokio::process::Command::from(command)
            .kill_on_drop(true)
            .spawn()
            .expect("the program is there");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let mut lines = BufReader::new(stdout).lines();
        let line = timeout(DEADLINE, lines.next_line()).await;
        let mut example = Example {
            addr: String::new(),
            log,
            _child: child,
        };
        let line = line.expect("it starts").expect("it prints text");
        let line = line.unwrap_or_else(|| panic!("it ended: {}", example.log()));
        let addr = line.strip_prefix("http://").expect("it prints its URL");
        addr.clone_into(&mut example.addr);
        example
    }
}

impl Example {
    /// All it has logged so far.
    fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("it logs text")
    }

    /// The answer to a GET with this key.
    async fn get(&self, plaintext: Option<&str>) -> String {
        let answer = async {
            let mut stream = TcpStream::connect(&self.addr).await?;
            let key = plaintext.map(|key| format!("Authorization: Bearer {key}\r\n"));
            let key = key.unwrap_or_default();
            let request = format!("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{key}\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = timeout(DEADLINE, answer).await.expect("it answers");
        answer.expect("it answers")
    }

    /// Asserts that a GET with this key has this status and contains this text.
    async fn expect(&self, plaintext: Option<&str>, status: u16, text: &str) {
        let answer = self.get(plaintext).await;
        let is = answer.split(' ').nth(1) == Some(&*status.to_string());
        assert!(is && answer.contains(text), "{answer}\n{}", self.log());
        let answer = answer.to_lowercase();
        let challenged = answer.contains("www-authenticate: bearer");
        assert_eq!(challenged, status == 401, "{answer}");
    }
}

/// Each decision becomes the HTTP status that gatekey names, and no decision becomes 503. The connection is encrypted.
async fn answers_by_the_decision(language: Language) {
    let authority = Authority::new("ca");
    let server = Gatekey::sqlite().encrypted(&authority).start().await;
    let token = server.admin_token();
    let admin = server.encrypted(authority.trusted(), Some(&token)).await;
    let admin = admin.expect("no certificate is needed");
    let (_, credential) = admin.issue("system", &["*:keys:validate"]).await;
    let (key, good) = admin.issue("default", &["reports:*"]).await;
    let (_, other) = admin.issue("default", &["jobs:read"]).await;
    let mut elsewhere = new_key("default", &["reports:read"]);
    elsewhere.allowed_cidrs = texts(&["10.0.0.0/8"]);
    let (_, elsewhere) = admin.create(elsewhere).await;
    let mut here = new_key("default", &["reports:read"]);
    here.allowed_cidrs = texts(&["127.0.0.1"]);
    let (_, here) = admin.create(here).await;

    let target = format!("{}localhost:{}", language.tls_scheme, server.addr().port());
    let ca = server.folder().join("ca.crt").display().to_string();
    let settings = [
        ("GATEKEY_CREDENTIAL", &*credential),
        ("GATEKEY_CA_FILE", &ca),
    ];
    let setup = server.setup().clone();
    let example = language.start(setup.folder(), &target, &settings).await;

    example.expect(Some(&good), 200, &key.owner_id).await;
    example
        .expect(Some(&other), 403, "REASON_INSUFFICIENT_SCOPE")
        .await;
    example
        .expect(Some(&elsewhere), 403, "REASON_IP_NOT_ALLOWED")
        .await;
    example.expect(Some(&here), 200, &key.owner_id).await;
    example.expect(None, 401, "REASON_CREDENTIAL_MISSING").await;
    admin.revoke(&key, "").await;
    example.expect(Some(&good), 401, "REASON_REVOKED").await;
    server.kill9();
    example.expect(Some(&here), 503, "UNAVAILABLE").await;
    let log = example.log();
    assert!(!log.is_empty(), "the error is logged");
    assert!(!log.contains(&credential) && !log.contains(&here), "{log}");
}

/// A replica that is killed costs no request: the other one answers.
async fn survives_a_lost_replica(language: Language) {
    static NETWORKS: AtomicU8 = AtomicU8::new(200);
    let setup = Gatekey::postgres(&Database::create().await);
    let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
    let at = |host: u8, port: u16| {
        let addr = SocketAddr::from(([127, network, 0, host], port));
        setup.clone().env("GATEKEY_LISTEN", addr.to_string())
    };
    let first = at(1, 0).start().await;
    let second = at(2, first.addr().port()).start().await;
    let addrs = vec![first.addr(), second.addr()];
    let known = [1, 2].map(|host| Ipv4Addr::new(127, network, 0, host));
    let (_known, addresses) = watch::channel(BTreeSet::from(known));
    let dns = names::serve(addresses);
    let admin = first.admin().await;
    let (_, credential) = admin.issue("system", &["*:keys:validate"]).await;
    let (key, good) = admin.issue("default", &["reports:read"]).await;
    let target = (language.target)(&Replicas { addrs, dns });
    let settings = [("GATEKEY_CREDENTIAL", &*credential)];
    let example = language.start(setup.folder(), &target, &settings).await;

    for _ in 0..40 {
        example.expect(Some(&good), 200, &key.owner_id).await;
    }
    first.kill9();
    for _ in 0..40 {
        example.expect(Some(&good), 200, &key.owner_id).await;
    }
    second.kill9();
    example.expect(Some(&good), 503, "UNAVAILABLE").await;
}

/// Two tests for each language.
macro_rules! each_language {
    ($($name:ident = $language:expr;)+) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn the_example_answers_by_the_decision() {
                answers_by_the_decision($language).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn the_example_survives_a_lost_replica() {
                survives_a_lost_replica($language).await;
            }
        }
    )+};
}
each_language! {
    python = PYTHON;
    node = NODE;
    go = GO;
    rust = RUST;
    fastapi = FASTAPI;
    express = EXPRESS;
}

#[test]
fn each_excerpt_of_the_page_is_in_the_example() {
    let examples = [
        (
            "python",
            include_str!("../../examples/validating/python/service.py"),
        ),
        (
            "js",
            include_str!("../../examples/validating/node/service.mjs"),
        ),
        ("go", include_str!("../../examples/validating/go/main.go")),
        (
            "rust",
            include_str!("../../examples/validating/rust/src/main.rs"),
        ),
    ];
    for (language, source) in examples {
        let blocks: Vec<_> = PAGE.split(&format!("```{language}\n")).skip(1).collect();
        assert!(!blocks.is_empty(), "{language}");
        for block in blocks {
            let (block, _) = block.split_once("```").expect("a block has an end");
            assert!(source.contains(block), "{block}");
        }
    }
}
