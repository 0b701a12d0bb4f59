//! The load generator of nghttp2, in one thread: it takes less CPU a call than ours, which matters where it shares the
//! cores with the server (Debian: `nghttp2-client`).

use std::{fs, process::Command, sync::LazyLock, time::Duration};

use crate::{
    load::{Instrumented, Latencies, PATH, Shape, ValidationRequest, frame},
    support::tool,
};

/// Whether it is installed.
pub fn is_here() -> bool {
    static HERE: LazyLock<bool> = LazyLock::new(|| {
        let version = Command::new("h2load").arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    });
    *HERE
}

/// Asks `calls` times. Every call must be answered with HTTP 200; what the answer says is for the caller to have asked.
/// Telling the time that each call took costs h2load a third more CPU, and so is done only when asked for.
pub fn run(question: &ValidationRequest, shape: Shape, calls: u64, timed: bool) -> Instrumented {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (body, log) = (folder.path().join("body"), folder.path().join("log"));
    fs::write(&body, frame(&question.request)).expect("the folder is writable");

    let mut command = Command::new("h2load");
    if timed {
        command.arg(format!("--log-file={}", log.display()));
    }
    let printed = tool::run(
        command
            .args(["-t", "1", "-c", &shape.connections.to_string()])
            .args(["-m", &shape.streams.to_string(), "-n", &calls.to_string()])
            .args(["-H", "content-type: application/grpc"])
            .args(["-H", "te: trailers"])
            .args(["-H", &format!("authorization: Bearer {}", question.bearer)])
            .arg("-d")
            .arg(&body)
            .arg(format!("http://{}{PATH}", question.addr)),
    );
    let all = format!("{calls} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(
        printed.contains(&all),
        "not every call was answered:\n{printed}"
    );
    let calls_per_second = rate(&printed).unwrap_or_else(|| panic!("no rate in:\n{printed}"));
    let log = if timed {
        fs::read_to_string(&log).expect("h2load has written its log")
    } else {
        String::new()
    };
    Instrumented {
        calls,
        calls_per_second,
        latencies: Latencies::new(log.lines().filter_map(latency).collect()),
    }
}

/// Of `finished in 1.02s, 98123.45 req/s, 12.34MB/s`.
fn rate(printed: &str) -> Option<f64> {
    let line = printed
        .lines()
        .find(|line| line.starts_with("finished in"))?;
    line.split(", ")
        .nth(1)?
        .strip_suffix(" req/s")?
        .parse()
        .ok()
}

/// Of `start<TAB>status<TAB>microseconds`.
fn latency(line: &str) -> Option<Duration> {
    let micros = line.split('\t').nth(2)?.parse().ok()?;
    Some(Duration::from_micros(micros))
}
