//! A real Prometheus that reads the metrics of servers and evaluates rules.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Child,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value as Json;

use super::{postgres::guarded, tool};

/// How long it may take until it knows what is asked for.
const DEADLINE: Duration = Duration::from_mins(1);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A running Prometheus; ended on drop, and when the test process ends.
pub struct Prometheus {
    addr: SocketAddr,
    guard: Child,
}

impl Prometheus {
    /// Starts one that reads from this address each second, and evaluates these rules as often.
    pub fn start(target: SocketAddr, rules: &Path) -> Prometheus {
        for _ in 0..20 {
            let port = rand::random_range(20_000..32_000);
            if let Some(prometheus) = Prometheus::launch(target, rules, port) {
                return prometheus;
            }
        }
        panic!("Prometheus did not start in 20 attempts");
    }

    fn launch(target: SocketAddr, rules: &Path, port: u16) -> Option<Prometheus> {
        let folder = tempfile::Builder::new()
            .prefix("gatekey-prometheus-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs: [{{job_name: gatekey, static_configs: [{{targets: ['{target}']}}]}}]\n",
            rules.display()
        );
        fs::write(folder.join("prometheus.yml"), config).expect("the folder is ours");
        let [mut words, _] = tool::prometheus();
        words.extend(
            ["--config.file=prometheus.yml", "--storage.tsdb.path=data"].map(str::to_owned),
        );
        words.push(format!("--web.listen-address=127.0.0.1:{port}"));
        let mut guard = guarded(&folder, &words);
        // A full pipe would block it.
        let mut stderr = guard.stderr.take().expect("stderr is a pipe");
        let log = thread::spawn(move || {
            let mut log = String::new();
            stderr.read_to_string(&mut log).ok();
            log
        });
        let addr = (Ipv4Addr::LOCALHOST, port).into();
        let began = Instant::now();
        while !get(addr, "/-/ready").is_some_and(|(ready, _)| ready) {
            if log.is_finished() {
                guard.wait().expect("the guard is our child");
                let log = log.join().expect("it reads text");
                assert!(
                    log.contains("address already in use"),
                    "Prometheus ended:\n{log}"
                );
                return None;
            }
            assert!(began.elapsed() < DEADLINE, "Prometheus is not ready");
            thread::sleep(LOOK_AGAIN);
        }
        Some(Prometheus { addr, guard })
    }

    /// What its API answers, once that `suits`.
    pub fn wait_for(&self, path: &str, suits: impl Fn(&Json) -> bool) -> Json {
        let began = Instant::now();
        loop {
            let (_, body) = get(self.addr, path).expect("Prometheus answers");
            let answer: Json = serde_json::from_str(&body).expect("it answers in JSON");
            assert_eq!(answer["status"], "success", "{path}: {answer}");
            if suits(&answer["data"]) {
                return answer["data"].clone();
            }
            assert!(began.elapsed() < DEADLINE, "{path} stays {answer}");
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// What a query finds, once it finds something.
    pub fn query(&self, query: &str) -> Json {
        self.find(query, |found| !found.is_empty())
    }

    /// Waits until a query finds a number of at least this much.
    pub fn number(&self, query: &str, least: f64) {
        self.find(query, |found| {
            let values = found.iter().filter_map(|it| it["value"][1].as_str());
            let mut numbers = values.filter_map(|it| it.parse::<f64>().ok());
            numbers.any(|number| number.is_finite() && number >= least)
        });
    }

    fn find(&self, query: &str, suits: impl Fn(&[Json]) -> bool) -> Json {
        let escaped: Vec<_> = query.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let path = format!("/api/v1/query?query={}", escaped.concat());
        let found = self.wait_for(&path, |data| {
            data["result"].as_array().is_some_and(|found| suits(found))
        });
        found["result"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.guard.wait().ok(); // this closes its stdin first
    }
}

/// Reads a page over HTTP: whether it is good, and what it holds. Nothing if nobody answers.
pub fn get(addr: SocketAddr, path: &str) -> Option<(bool, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    // By the older protocol the answer comes in one piece, and the connection ends with it.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {addr}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.contains(" 200 "), body.to_owned()))
}
