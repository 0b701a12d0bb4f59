//! The image, without a registry or an engine: the Dockerfile's last stage is read, the file system that it describes is
//! built, and the server is started in it as the chart's pod would: not root, no capability, nothing writable but a volume.
//!
//! This needs mounts of its own. Root makes them as it is; anyone else needs user namespaces, and without them the tests
//! fail.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustix::process::{Signal, geteuid};
use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokio::time;

use crate::{
    helm::{self, Release, env, lifecycle, text},
    program::Program,
    support::{Database, tool},
};

/// Whom the image and the chart run the server as.
const USER: u32 = 65532;
/// A user such as OpenShift assigns to a pod that names none.
const ASSIGNED_USER: u32 = 1_000_650_000;
/// How long a server that serves may take to be ready.
const DEADLINE: Duration = Duration::from_mins(1);

/// The image that the Dockerfile's last stage describes.
struct Image {
    folder: TempDir,
    env: Vec<(String, String)>,
    directory: String,
    user: u32,
    entrypoint: Vec<String>,
    health: Vec<String>,
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Image {
    /// Does what each line of the stage says; panics at one that it does not know.
    fn build() -> Image {
        let dockerfile = fs::read_to_string(repository().join("Dockerfile")).expect("it is there");
        let (build, stage) = dockerfile
            .rsplit_once("FROM scratch\n")
            .expect("the last stage");
        assert!(
            build.contains("docker/rootfs.sh /gatekey /rootfs"),
            "{build}"
        );

        let mut image = Image {
            folder: TempDir::with_prefix("gatekey-image-").expect("a temporary folder"),
            env: Vec::new(),
            directory: "/".into(),
            user: 0,
            entrypoint: Vec::new(),
            health: Vec::new(),
        };
        // What the stage before has made, with the binary under test in the place of the release.
        let before = image.folder.path().join("build");
        let script = repository().join("docker/rootfs.sh");
        let binary = env!("CARGO_BIN_EXE_gatekey");
        tool::run(Command::new(script).arg(binary).arg(before.join("rootfs")));
        fs::create_dir(image.root()).expect("a new folder");

        let lines = stage
            .lines()
            .filter(|it| !it.is_empty() && !it.starts_with('#'));
        for line in lines {
            let (instruction, rest) = line.split_once(' ').expect("an instruction says something");
            let words: Vec<_> = rest.split(' ').collect();
            match (instruction, &*words) {
                ("COPY", ["--from=build", from, to]) => image.copy(&before, from, to),
                ("WORKDIR", [directory]) => (*directory).clone_into(&mut image.directory),
                ("USER", [user]) => {
                    // A name would not do: Kubernetes could not tell that it is not root.
                    let (user, group) = user.split_once(':').expect("user:group");
                    assert_eq!(user, group);
                    image.user = user.parse().expect("a number");
                }
                ("ENV", [variable]) => {
                    let (name, value) = variable.split_once('=').expect("NAME=value");
                    image.env.push((name.into(), value.into()));
                }
                ("EXPOSE", _) => {}
                ("HEALTHCHECK", _) => {
                    image.health = words_of(rest.split_once("CMD ").expect("a command").1);
                }
                ("ENTRYPOINT", _) => image.entrypoint = words_of(rest),
                _ => panic!("what does {line:?} do?"),
            }
        }
        image
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn copy(&self, before: &Path, from: &str, to: &str) {
        let (from, to) = (
            before.join(from.trim_start_matches('/')),
            self.root().join(to.trim_start_matches('/')),
        );
        fs::create_dir_all(&to).expect("a folder of our own");
        tool::run(Command::new("cp").arg("-a").arg(from.join(".")).arg(&to));
    }

    /// A folder of the host's, and one in the image for it to be mounted on, as an engine makes one.
    fn mount_point(&self, name: &str, at: &str) -> (PathBuf, PathBuf) {
        let source = self.folder.path().join(name);
        let target = self.root().join(at.trim_start_matches('/'));
        fs::create_dir_all(&source).expect("a folder of our own");
        fs::create_dir_all(&target).expect("a folder of our own");
        (source, target)
    }

    /// These words, run in this file system, read-only but for `writable`.
    fn command(
        &self,
        words: &[String],
        mounts: &[(PathBuf, PathBuf)],
        writable: Option<&(PathBuf, PathBuf)>,
    ) -> Program {
        let mount = |options: &str, from: &Path, to: &Path| {
            format!("mount {options} {} {}", from.display(), to.display())
        };
        let mut script = vec![mount("--bind", &self.root(), &self.root())];
        for (source, target) in mounts.iter().chain(writable) {
            script.push(mount("--bind", source, target));
        }
        for target in mounts.iter().map(|(_, target)| target) {
            script.push(mount("-o remount,bind,ro", Path::new(""), target));
        }
        script.push(mount("-o remount,bind,ro", Path::new(""), &self.root()));
        let user = self.user;
        let (outside, inside) = if geteuid().is_root() {
            (&["--mount"][..], format!("--setgid={user} --setuid={user}"))
        } else {
            (
                &["--user", "--map-root-user", "--mount"][..],
                format!("--user --map-user={user} --map-group={user}"),
            )
        };
        // Each becomes the next: the process is the server's own in the end.
        script.push(format!(
            "exec setpriv --no-new-privs unshare {inside} --root={} --wd={} -- \"$@\"",
            self.root().display(),
            self.directory
        ));
        let script = script.join("\n");
        let words = words.iter().map(String::as_str);
        let launch: Vec<_> = [outside, &["sh", "-euc", &script, "sh"]]
            .concat()
            .into_iter()
            .chain(words)
            .collect();
        let mut program = Program::through("unshare", self.folder.path(), &launch);
        for (name, value) in &self.env {
            program = program.env(name, value);
        }
        program.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
    }
}

/// `["a", "b"]`
fn words_of(list: &str) -> Vec<String> {
    serde_json::from_str(list).expect("the exec form, for there is no shell")
}

/// Makes this user the owner, if we may; otherwise we are it.
fn give(path: &Path, owner: u32) {
    if geteuid().is_root() {
        chown(path, Some(owner), Some(owner)).expect("root may");
    }
}

/// What the chart's Secret holds, in files, as the kubelet mounts them.
fn write_secrets(release: &Release, folder: &Path, group: u32) {
    for (name, value) in release.the("Secret")["data"].as_object().expect("data") {
        let file = folder.join(name);
        let value = BASE64_STANDARD.decode(text(value)).expect("base64");
        fs::write(&file, value).expect("a folder of our own");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o440)).expect("it is ours");
        if geteuid().is_root() {
            chown(&file, Some(0), Some(group)).expect("root may");
        }
    }
}

/// A container's environment, on a port of its own.
fn with_env(mut program: Program, container: &Json, database: Option<&str>) -> Program {
    for (name, value) in env(container) {
        let value = value
            .or(database)
            .expect("only the database's URL is in a Secret");
        program = program.env(name, value);
    }
    for listen in [
        "GATEKEY_LISTEN",
        "GATEKEY_HEALTH_LISTEN",
        "GATEKEY_METRICS_LISTEN",
    ] {
        program = program.env(listen, "127.0.0.1:0");
    }
    program
}

/// Migrates, serves and tests as the chart would, with its volume or without.
async fn deployed(values: Json, database: Option<&str>) {
    let release = helm::release(values);
    let mut image = Image::build();
    if release.pod()["spec"]["securityContext"]["runAsUser"].is_null() {
        image.user = ASSIGNED_USER;
    }
    let secrets = image.mount_point("secrets", "/etc/gatekey");
    write_secrets(&release, &secrets.0, image.user);
    let volume = image.mount_point("volume", "/var/lib/gatekey");
    give(&volume.0, image.user);
    let mounts = release.server()["volumeMounts"].as_array().expect("mounts");
    let writable = mounts
        .iter()
        .any(|it| it["mountPath"] == "/var/lib/gatekey");
    let writable = writable.then_some(&volume);
    let secrets = std::slice::from_ref(&secrets);
    let arguments = |container: &Json| words_of(&container["args"].to_string());

    let migrate = release.migration();
    let words = [image.entrypoint.clone(), arguments(migrate)].concat();
    let migrated = with_env(image.command(&words, secrets, writable), migrate, database);
    migrated.end().await.was_silent();

    let server = release.server();
    let words = [image.entrypoint.clone(), arguments(server)].concat();
    let program = with_env(image.command(&words, secrets, writable), server, database);
    let mut running = program.start();
    let address = running.serving().await;
    confined(running.id(), image.user, writable.is_some());

    // Ready, by the image's own health check, which asks as often as a probe.
    let ready = async {
        let ask = || image.command(&image.health, &[], None);
        let ask = || ask().env("GATEKEY_LISTEN", address.to_string());
        while !ask().end().await.status.success() {}
    };
    let ready = time::timeout(DEADLINE, ready).await;
    ready.expect("a server that serves becomes ready");

    let tested = lifecycle::run(&release, address, &secrets[0].0, &tool::grpcurl());
    lifecycle::passed(&tested);
    let (status, _) = running.end_by(Signal::TERM).await;
    assert!(status.success(), "{status}");
}

/// The process is not root, can do nothing that root can, and sees no place to write but the volume.
fn confined(id: u32, user: u32, volume: bool) {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {status}"))
            .trim()
            .to_owned()
    };
    let user = if geteuid().is_root() {
        user
    } else {
        geteuid().as_raw()
    };
    assert_ne!(user, 0);
    assert_eq!(of("Uid:"), vec![user.to_string(); 4].join("\t"));
    assert_eq!(of("NoNewPrivs:"), "1");
    for capabilities in ["CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(of(capabilities), "0000000000000000", "{capabilities}");
    }
    let mounts = fs::read_to_string(format!("/proc/{id}/mountinfo")).expect("it runs");
    let seen = mounts.lines().map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        (
            fields[4].to_owned(),
            fields[5].split(',').any(|it| it == "ro"),
        )
    });
    let seen: Vec<_> = seen.collect();
    let expected = [
        ("/", true),
        ("/etc/gatekey", true),
        ("/var/lib/gatekey", false),
    ];
    let expected = &expected[..if volume { 3 } else { 2 }];
    let expected: Vec<_> = expected
        .iter()
        .map(|(path, ro)| ((*path).to_owned(), *ro))
        .collect();
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_on_postgres_with_nothing_to_write_to() {
    let values = json!({"database": {"existingSecret": "db"}, "config": {"logFormat": "text"}, "metrics": {"enabled": false}});
    deployed(values, Some(&Database::create().await.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_as_the_user_that_openshift_assigns() {
    let assigned = json!({"runAsUser": null, "runAsGroup": null, "fsGroup": null});
    let config = json!({"logFormat": "text"});
    let values = json!({"database": {"existingSecret": "db"}, "podSecurityContext": assigned, "config": config, "metrics": {"enabled": false}});
    deployed(values, Some(&Database::create().await.url())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_on_sqlite_with_a_volume() {
    let values = json!({"database": {"engine": "sqlite"}, "config": {"logFormat": "text"}, "metrics": {"enabled": false}});
    deployed(values, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_image_serves_as_its_own_user_and_as_any_other() {
    for user in [USER, 1_000_650_000] {
        let mut image = Image::build();
        assert_eq!(image.user, USER);
        image.user = user;
        let data = image.root().join("var/lib/gatekey");
        // The image's own folder is what is writable, as with an engine that has no volume for it.
        let own = (data.clone(), data.clone());
        let program = image.command(&image.entrypoint, &[], Some(&own));
        let mut running = program
            .env("GATEKEY_LISTEN", "127.0.0.1:0")
            .env("GATEKEY_METRICS_LISTEN", "off")
            .start();
        running.serving().await;
        let database = fs::metadata(data.join("gatekey.db")).expect("it was made");
        if geteuid().is_root() {
            assert_eq!(database.uid(), user);
        }
        let (status, _) = running.end_by(Signal::TERM).await;
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_images_root_cannot_be_written_to() {
    let image = Image::build();
    let ended = image
        .command(&image.entrypoint, &[], None)
        .env("GATEKEY_LISTEN", "127.0.0.1:0")
        .env("GATEKEY_METRICS_LISTEN", "off")
        .end()
        .await;
    let told = ended.last_line();
    assert!(
        told.contains("GATEKEY_DATABASE_URL") && told.contains("Read-only file system"),
        "{told}"
    );
}

#[test]
fn the_image_holds_the_program_its_libraries_and_no_shell() {
    let image = Image::build();
    let found = tool::run(
        Command::new("find")
            .arg(image.root())
            .args(["-type", "f", "-printf", "%P\n"]),
    );
    let mut files: Vec<_> = found.lines().collect();
    files.retain(|it| !it.starts_with("lib"));
    files.sort_unstable();
    let expected = [
        "etc/group",
        "etc/nsswitch.conf",
        "etc/passwd",
        "usr/local/bin/gatekey",
    ];
    assert_eq!(files, expected);
    let libraries = found.lines().filter(|it| it.starts_with("lib"));
    for library in libraries {
        let name = library.rsplit('/').next().unwrap_or_default();
        assert!(
            ["libc.so.6", "libm.so.6", "libgcc_s.so.1"].contains(&name)
                || name.starts_with("ld-linux"),
            "{library}"
        );
    }
}

#[test]
fn the_dockerfile_passes_hadolint() {
    let mut hadolint = Command::new(tool::hadolint());
    tool::run(
        hadolint
            .arg("--failure-threshold=style")
            .arg(repository().join("Dockerfile")),
    );
}
