//! The program as a person meets it: exactly the settings given, what it prints, how it ends.
//!
//! Unlike [`Setup`], which gives a server all that the other tests need, nothing is set here that is not written down.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    path::Path,
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    time,
};

use crate::support::Setup;

/// How long it may take to end, or to print what is waited for: more than it tries a store.
const DEADLINE: Duration = Duration::from_mins(1);

/// The program before it runs.
pub struct Program(Command);

impl Program {
    /// With an empty environment, in this folder.
    pub fn bare(folder: &Path, arguments: &[&str]) -> Self {
        Self::through(env!("CARGO_BIN_EXE_gatekey"), folder, arguments)
    }

    /// Started by another program, which becomes it.
    pub fn through(launcher: &str, folder: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(launcher);
        command
            .args(arguments)
            .env_clear()
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self(command)
    }

    /// On a port of its own, with a setup's database and folder, where the two files have their usual names.
    pub fn of(setup: &Setup, arguments: &[&str]) -> Self {
        Self::bare(setup.folder(), arguments)
            .env("GATEKEY_LISTEN", "127.0.0.1:0")
            .env("GATEKEY_METRICS_LISTEN", "off")
            .env("GATEKEY_DATABASE_URL", setup.database_url())
    }

    /// Adds a setting, or replaces one.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it to its end, which must come by itself.
    pub async fn end(mut self) -> Ended {
        let began = Instant::now();
        let ended = time::timeout(DEADLINE, self.0.output()).await;
        let output = ended.unwrap_or_else(|_| panic!("it goes on running: {:?}", self.0));
        let output = output.expect("cargo has built the program");
        let text = |bytes| String::from_utf8(bytes).expect("it prints UTF-8");
        Ended {
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            took: began.elapsed(),
        }
    }

    /// Starts it and does not wait.
    pub fn start(mut self) -> Running {
        let mut child = self.0.spawn().expect("cargo has built the program");
        let stdout = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        Running {
            stdout: BufReader::new(stdout).lines(),
            stderr: BufReader::new(stderr).lines(),
            log: String::new(),
            child,
        }
    }
}

/// What is left of the program.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// The one line that it refused with: nothing else was printed, and it did not panic.
    pub fn deny_reason(&self) -> &str {
        assert_eq!(self.stdout, "", "{self:?}");
        let line = self.last_line();
        assert_eq!(self.stderr, format!("{line}\n"), "more than one line");
        line
    }

    /// The last line, with which it refused.
    pub fn last_line(&self) -> &str {
        assert!(!self.status.success(), "{self:?}");
        assert_ne!(self.status.code(), Some(101), "it panicked: {self:?}");
        assert!(self.status.code().is_some(), "it was killed: {self:?}");
        self.stderr.lines().last().expect("a refusal says why")
    }

    /// Asserts exit code 0, and that there was nothing to say.
    pub fn was_silent(&self) {
        assert!(self.status.success(), "{self:?}");
        assert_eq!((&*self.stdout, &*self.stderr), ("", ""));
    }
}

/// The program under way; killed on drop.
pub struct Running {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
    /// The lines of stderr that have been read.
    log: String,
}

impl Running {
    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id().expect("it has not been waited for")
    }

    /// The lines of stderr that have been read.
    pub fn log(&self) -> &str {
        &self.log
    }

    /// Waits until it serves: where.
    pub async fn serving(&mut self) -> SocketAddr {
        let line = self.wait_for("serving listen=").await;
        let address = line.split("listen=").nth(1).expect("it was waited for");
        let address = address.split(' ').next().expect("split gives one or more");
        address.parse().expect("an address and a port")
    }

    /// Waits until it serves or has refused: whether it serves.
    pub async fn decided(&mut self) -> bool {
        let line = self.wait_for_any(&["serving listen=", "is invalid:"]).await;
        line.contains("serving listen=")
    }

    /// Waits for a line of stderr with these words in it; lines before it are passed.
    pub async fn wait_for(&mut self, words: &str) -> String {
        self.wait_for_any(&[words]).await
    }

    async fn wait_for_any(&mut self, words: &[&str]) -> String {
        let found = time::timeout(DEADLINE, async {
            while let Some(line) = self.stderr.next_line().await.expect("a pipe") {
                self.log.push_str(&line);
                self.log.push('\n');
                if words.iter().any(|words| line.contains(words)) {
                    return Some(line);
                }
            }
            None
        });
        let found = found.await.ok().flatten();
        found.unwrap_or_else(|| panic!("no {words:?} in\n{}", self.log))
    }

    /// The next line of stdout.
    pub async fn line(&mut self) -> String {
        let line = time::timeout(DEADLINE, self.stdout.next_line()).await;
        let line = line.expect("a line in time").expect("a pipe");
        line.expect("a line before the end")
    }

    /// Sends it a signal and does not wait.
    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.id()).expect("a process id");
        let id = Pid::from_raw(id).expect("not 0");
        kill_process(id, signal).expect("it is our child");
    }

    /// Sends it a signal, waits until it has ended, and gives its status and the lines of stdout not read before.
    pub async fn end_by(mut self, signal: Signal) -> (ExitStatus, Vec<String>) {
        self.signal(signal);
        let (mut stdout, mut stderr) = (Vec::new(), self.stderr);
        let ended = time::timeout(DEADLINE, async {
            while let Some(line) = self.stdout.next_line().await.expect("a pipe") {
                stdout.push(line);
            }
            while stderr.next_line().await.expect("a pipe").is_some() {}
            self.child.wait().await.expect("it is our child")
        });
        let status = ended.await.expect("it goes on running");
        (status, stdout)
    }
}
