//! A rolling update, as a Deployment of three replicas does it, under 1 000 calls a second from clients that balance over
//! them: no call fails for good.
//!
//! A pod that is new is waited for, is told of as an endpoint, and only then is an old one told of no more and stopped.
//! `docs/kubernetes.md` has what these tests print.

use std::{
    collections::{BTreeSet, VecDeque},
    error::Error as _,
    net::Ipv4Addr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use gatekey::api::proto::Reason;
use serde_json::Value as Json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    sync::{Semaphore, watch},
    task::{JoinSet, block_in_place},
    time,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, channel::Change},
};

use crate::support::{Client, Database, Gatekey, Setup, client::ask, names, prometheus::get, tool};

const REPLICAS: usize = 3;
/// Calls a second.
const RATE: u64 = 1000;
/// How many calls may be under way.
const UNDER_WAY: usize = 300;
/// How many calls are to be made before and after each replacement, at least.
const BETWEEN: u64 = 2000;
const DEADLINE: Duration = Duration::from_mins(1);
/// How often a call is made, at most, by the standard retry policy, and how long it waits before the second time.
const ATTEMPTS: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(100);

/// Replicas on one database, each at an address of its own, as pods are, with the same port.
struct Deployment {
    setup: Setup,
    /// The first two bytes of the addresses, and the port.
    network: [u8; 2],
    port: u16,
    made: u8,
    pods: VecDeque<(Ipv4Addr, Gatekey)>,
    /// Where clients may call.
    endpoints: watch::Sender<BTreeSet<Ipv4Addr>>,
}

impl Deployment {
    async fn start() -> Deployment {
        static NETWORKS: AtomicU8 = AtomicU8::new(0);
        let database = Database::create().await;
        let setup = Gatekey::postgres(&database)
            .env("GATEKEY_LOG", "info")
            .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
        let mut deployment = Deployment {
            setup,
            // Tests that run at the same time do not meet.
            network: [127, 1 + NETWORKS.fetch_add(1, Ordering::Relaxed)],
            port: 0,
            made: 0,
            pods: VecDeque::new(),
            endpoints: watch::Sender::default(),
        };
        for _ in 0..REPLICAS {
            deployment.add().await;
        }
        deployment
    }

    /// Adds a pod, which is an endpoint once it is ready.
    async fn add(&mut self) {
        self.made += 1;
        let [first, second] = self.network;
        let address = Ipv4Addr::new(first, second, 0, self.made);
        let listen = format!("{address}:{}", self.port);
        let pod = self
            .setup
            .clone()
            .env("GATEKEY_LISTEN", listen)
            .start()
            .await;
        pod.wait_for_log(r#""message":"ready""#).await;
        self.port = pod.addr().port();
        self.pods.push_back((address, pod));
        self.endpoints.send_modify(|it| _ = it.insert(address));
    }

    /// The oldest pod is an endpoint no more, and is given to whom stops it.
    fn retire(&mut self) -> Gatekey {
        let (address, pod) = self.pods.pop_front().expect("there are pods");
        self.endpoints.send_modify(|it| _ = it.remove(&address));
        pod
    }

    fn newest(&self) -> &Gatekey {
        &self.pods.back().expect("there are pods").1
    }

    /// A key, whose plaintext every pod knows.
    async fn issue(&self) -> String {
        let (_, plaintext) = self.pods[0]
            .1
            .admin()
            .await
            .issue("default", &["jobs:*"])
            .await;
        plaintext
    }
}

/// Waits until so many clients are connected to a pod.
async fn has(pod: &Gatekey, clients: usize) {
    let open = format!("gatekey_connections{{port=\"main\"}} {clients}");
    let page = || get(pod.metrics(), "/metrics").expect("it answers").1;
    let known = async {
        while !block_in_place(page).lines().any(|line| line == open) {
            time::sleep(Duration::from_millis(20)).await;
        }
    };
    let known = time::timeout(DEADLINE, known).await;
    assert!(known.is_ok(), "{clients} clients find or leave a pod");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_grpc_python_fails_while_three_replicas_are_replaced_in_turn() {
    let mut deployment = Deployment::start().await;
    let dns = names::serve(deployment.endpoints.subscribe());
    let mut python = Command::from(block_in_place(tool::python_with_grpc));
    let mut client = python
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/suite/rolling.py"
        ))
        .args([dns.to_string(), format!("gatekey.test:{}", deployment.port)])
        .env("GATEKEY_TOKEN", deployment.pods[0].1.admin_token())
        .env("GATEKEY_KEY", deployment.issue().await)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("it was seen to run");
    let stdin = client.stdin.take();
    let mut lines = BufReader::new(client.stdout.take().expect("a pipe")).lines();
    let mut line = async || -> Json {
        let line = time::timeout(DEADLINE, lines.next_line()).await;
        let line = line
            .expect("it goes on")
            .expect("text")
            .expect("it goes on");
        serde_json::from_str(&line).expect("JSON")
    };
    let mut answered = 0;
    let mut more = async || {
        let enough = answered + BETWEEN;
        while answered < enough {
            answered = line().await["answered"].as_u64().expect("a count");
        }
    };

    more().await;
    for _ in 0..REPLICAS {
        deployment.add().await;
        deployment.retire().stop().await;
        has(deployment.newest(), 3).await;
        more().await;
    }
    drop(stdin);
    let told = loop {
        let told = line().await;
        if told["ended"].is_object() {
            break told;
        }
    };
    println!("{told:#}");
    for channel in ["retry policy", "no policy"] {
        let ended = told["ended"][channel].as_object().expect("a channel");
        assert_eq!(
            ended.keys().collect::<Vec<_>>(),
            ["allowed"],
            "{channel}: {told}"
        );
    }
    let unprotected = told["ended"]["no retries at all"]
        .as_object()
        .expect("a channel");
    assert!(
        unprotected
            .keys()
            .all(|how| how == "allowed" || how.starts_with("UNAVAILABLE")),
        "{told}"
    );
}

/// A call of tonic's client: what went wrong, and whether it was answered in the end.
struct Call {
    failures: Vec<Status>,
    allowed: bool,
}

/// Validates once, and again where the standard policy would, or where the call was never sent.
async fn call(client: Client, plaintext: String) -> Call {
    let mut failures = Vec::new();
    for attempt in 0..ATTEMPTS {
        match client.try_validate(ask(&plaintext)).await {
            Ok(answer) => {
                let allowed = answer.reason() == Reason::Allowed;
                return Call { failures, allowed };
            }
            Err(status) => {
                let again = status.code() == Code::Unavailable || is_goaway(&status);
                failures.push(status);
                if !again {
                    break;
                }
                time::sleep(BACKOFF * 2_u32.pow(attempt)).await;
            }
        }
    }
    let allowed = false;
    Call { failures, allowed }
}

/// Whether a connection was told to go away in order just when hyper was about to send the call over it.
fn is_goaway(status: &Status) -> bool {
    std::iter::successors(status.source(), |it| (*it).source()).any(|cause| {
        let h2 = cause.downcast_ref::<h2::Error>();
        let hyper = cause.downcast_ref::<hyper::Error>();
        h2.is_some_and(|it| it.is_go_away() && it.reason() == Some(h2::Reason::NO_ERROR))
            || hyper.is_some_and(hyper::Error::is_canceled)
    })
}

/// Replaces three replicas under tonic's client, `wait`ing or not until it has left a pod that is to be stopped, as it has
/// the time to during `preStopSeconds`. Returns all calls, and prints how they ended.
async fn roll_under_tonic(wait: bool) -> Vec<Call> {
    let mut deployment = Deployment::start().await;
    let (channel, changes) = Channel::balance_channel(16);
    let (mut endpoints, port) = (deployment.endpoints.subscribe(), deployment.port);
    let following = tokio::spawn(async move {
        let mut known = BTreeSet::new();
        loop {
            let now = endpoints.borrow_and_update().clone();
            for new in now.difference(&known) {
                let endpoint = Endpoint::from_shared(format!("http://{new}:{port}"));
                let change = Change::Insert(*new, endpoint.expect("a URL"));
                changes.send(change).await.expect("the channel is there");
            }
            for old in known.difference(&now) {
                let change = Change::Remove(*old);
                changes.send(change).await.expect("the channel is there");
            }
            known = now;
            endpoints.changed().await.expect("the deployment is there");
        }
    });
    let client = Client::over(channel, Some(&deployment.newest().admin_token()));
    let plaintext = deployment.issue().await;

    let (answered, over) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let calling = tokio::spawn({
        let (answered, over) = (Arc::clone(&answered), over.clone());
        async move {
            let mut calls = JoinSet::new();
            let mut ticks = time::interval(Duration::from_micros(1_000_000 / RATE));
            let room = Arc::new(Semaphore::new(UNDER_WAY));
            while over.run_until_cancelled(ticks.tick()).await.is_some() {
                // A slow machine is not asked for more than it can answer.
                let inside = Arc::clone(&room).acquire_owned().await;
                let call = call(client.clone(), plaintext.clone());
                let answered = Arc::clone(&answered);
                calls.spawn(async move {
                    let _inside = inside;
                    let call = call.await;
                    answered.fetch_add(1, Ordering::Relaxed);
                    call
                });
            }
            calls.join_all().await
        }
    });
    let more = async || {
        let enough = answered.load(Ordering::Relaxed) + BETWEEN;
        let reached = async {
            while answered.load(Ordering::Relaxed) < enough {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        let reached = time::timeout(DEADLINE, reached).await;
        reached.expect("calls are answered");
    };

    more().await;
    for _ in 0..REPLICAS {
        deployment.add().await;
        let old = deployment.retire();
        if wait {
            has(&old, 0).await;
        }
        old.stop().await;
        has(deployment.newest(), 1).await;
        more().await;
    }
    over.cancel();
    let calls = calling.await.expect("it does not panic");
    following.abort();
    let (failed, again) = (
        calls.iter().filter(|it| !it.allowed).count(),
        calls.iter().filter(|it| !it.failures.is_empty()).count(),
    );
    println!(
        "tonic, waited for: {wait}; {} calls, {again} made again, {failed} failed",
        calls.len()
    );
    for failure in calls.iter().flat_map(|it| &it.failures) {
        println!("{failure:?}");
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_tonic_fails_that_leaves_a_pod_before_it_is_stopped() {
    let calls = roll_under_tonic(true).await;
    assert!(calls.iter().all(|it| it.allowed && it.failures.is_empty()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_of_tonic_that_meets_a_goaway_is_told_as_such_when_a_pod_is_stopped_at_once() {
    let calls = roll_under_tonic(false).await;
    assert!(calls.iter().all(|it| it.allowed));
}
