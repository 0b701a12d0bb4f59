//! Calls whose caller is gone: nothing is hashed and nothing is committed for them.
//!
//! A caller is gone once it has cancelled the call (RST_STREAM) or the call's deadline has passed.
//! One window remains, which the README describes: a call that is cancelled while its COMMIT is under
//! way has made its change, and nobody gets the answer.

use std::time::{Duration, Instant};

use gatekey::api::proto::{
    CreateKeyRequest, GetKeyRequest, KeyState, Owner, Reason, RotateKeyRequest, UpdateOwnerRequest,
};
use tokio::{task::JoinSet, time};
use tonic::{Code, Request, Status};

use crate::{
    inside::Inside,
    metrics,
    support::{
        Client, Gatekey, Setup,
        client::{error_reason, new_key, whole_owner},
        on_both_engines,
    },
};

/// How long a server may take to notice what a test waits for.
const DEADLINE: Duration = Duration::from_secs(20);
/// The cost of a hash that a server has by default: some 50 a second.
pub const DEFAULT_COST: &str = "m=19456,t=2,p=1";
/// Calls that are cancelled in the queue for Argon2.
const CREATES: usize = 60;
/// Calls that are cancelled while they wait for the database.
const PUTS: usize = 20;
/// Changes that have their turn at once: one runs, one waits in the database.
const RUNNING: usize = 2;
/// Rotations with deadlines about as long as a rotation takes.
const ROTATIONS: u32 = 150;

on_both_engines! {
    async fn calls_cancelled_in_the_queue_for_argon2_make_no_hash_and_no_key(setup: Setup) {
        cancel_creates(&setup).await;
    }

    async fn calls_cancelled_in_the_queue_for_the_database_change_nothing(setup: Setup) {
        cancel_puts(&setup).await;
    }

    async fn calls_whose_deadline_passes_while_they_wait_for_the_database_change_nothing(setup: Setup) {
        outwait_puts(&setup).await;
    }

    async fn a_rotation_whose_answer_comes_too_late_leaves_the_old_key_as_it_was(setup: Setup) {
        rotate_in_little_time(&setup).await;
    }

    async fn a_key_of_a_call_whose_caller_left_is_found_by_its_request_id(setup: Setup) {
        repeat_a_lost_create(&setup).await;
    }
}

async fn start(setup: &Setup) -> Gatekey {
    let setup = setup.clone().env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    setup.start().await
}

/// Waits until the metrics show what `seen` looks for.
async fn wait_for(server: &Gatekey, what: &str, seen: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = metrics::page(server);
        if seen(&page) {
            return page;
        }
        assert!(Instant::now() < deadline, "{what} is not seen in\n{page}");
        time::sleep(Duration::from_millis(10)).await;
    }
}

fn issuing(page: &str, what: &str) -> u64 {
    metrics::count(page, &format!("gatekey_argon2_{what}{{purpose=\"issue\"}}"))
}

fn changes(page: &str, what: &str) -> u64 {
    metrics::count(page, &format!("gatekey_admin_{what}{{queue=\"changes\"}}"))
}

fn abandoned(page: &str, stage: &str) -> u64 {
    metrics::count(
        page,
        &format!("gatekey_admin_abandoned_total{{stage=\"{stage}\"}}"),
    )
}

async fn cancel_creates(setup: &Setup) {
    let setup = &setup.clone().env("GATEKEY_ARGON2", DEFAULT_COST);
    let server = start(setup).await;
    let admin = server.admin().await;
    let mut calls = JoinSet::new();
    for _ in 0..CREATES {
        let admin = admin.clone();
        calls.spawn(async move { admin.try_create(new_key("default", &["a"])).await });
    }
    wait_for(&server, "a queue", |page| issuing(page, "queued") >= 40).await;
    calls.abort_all();
    let page = wait_for(&server, "an empty queue", |page| {
        issuing(page, "queued") + issuing(page, "running") + changes(page, "running") == 0
    })
    .await;
    let hashes = metrics::count(&page, "gatekey_argon2_hashes_total");
    let keys = Inside::of(setup)
        .await
        .texts("SELECT key_id FROM keys")
        .await;
    println!(
        "{CREATES} calls were cancelled after {hashes} hashes; there are {} keys",
        keys.len()
    );
    assert!(hashes <= 25, "{hashes} hashes were made");
    assert!(keys.len() as u64 <= hashes);
    assert!(abandoned(&page, "hash") >= 35);
    // There is room for whoever still waits.
    admin.issue("default", &["a"]).await;
}

fn set_owner(number: usize) -> UpdateOwnerRequest {
    whole_owner(Owner {
        tenant_id: "default".to_owned(),
        owner_id: format!("owner {number}"),
        ..Owner::default()
    })
}

/// Begins [`PUTS`] calls while changes are held, and waits until all wait for the database.
async fn waiting_puts(
    server: &Gatekey,
    admin: &Client,
    deadline: Option<Duration>,
) -> JoinSet<Result<(), Status>> {
    let mut calls = JoinSet::new();
    for number in 0..PUTS {
        let mut owners = admin.owners.clone();
        calls.spawn(async move {
            let mut request = Request::new(set_owner(number));
            if let Some(deadline) = deadline {
                request.set_timeout(deadline);
            }
            owners.update_owner(request).await.map(drop)
        });
    }
    let waiting = (PUTS - RUNNING) as u64;
    wait_for(server, "a queue", |page| changes(page, "queued") == waiting).await;
    calls
}

/// Sees that the queue is empty while changes are still held, and that nothing is changed later.
async fn assert_nothing_is_changed(server: &Gatekey, admin: &Client, mut inside: Inside) {
    wait_for(server, "an empty queue", |page| {
        changes(page, "queued") == 0
    })
    .await;
    inside.let_go().await;
    let page = wait_for(server, "the end", |page| changes(page, "running") == 0).await;
    assert_eq!(abandoned(&page, "queue"), (PUTS - RUNNING) as u64);
    assert_eq!(abandoned(&page, "transaction"), RUNNING as u64);
    let owners = inside.texts("SELECT owner_id FROM owners").await;
    assert!(owners.is_empty(), "{owners:?}");
    let put = admin.owners.clone().update_owner(set_owner(0)).await;
    put.expect("there is room again");
}

async fn cancel_puts(setup: &Setup) {
    let server = start(setup).await;
    let admin = server.admin().await;
    let mut inside = Inside::of(setup).await;
    inside.hold().await;
    let mut calls = waiting_puts(&server, &admin, None).await;
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    assert_nothing_is_changed(&server, &admin, inside).await;
}

async fn outwait_puts(setup: &Setup) {
    let server = start(setup).await;
    let admin = server.admin().await;
    let mut inside = Inside::of(setup).await;
    inside.hold().await;
    let deadline = Some(Duration::from_secs(2));
    let calls = waiting_puts(&server, &admin, deadline).await;
    for answer in calls.join_all().await {
        let status = answer.expect_err("changes are held");
        // tonic's client says CANCELLED where its own timer was first.
        let late = [Code::DeadlineExceeded, Code::Cancelled];
        assert!(late.contains(&status.code()), "{status:?}");
    }
    assert_nothing_is_changed(&server, &admin, inside).await;
}

/// The answer to a rotation at once, if it comes within this time.
async fn rotate(
    admin: &Client,
    key_id: &str,
    deadline: Duration,
) -> Result<(String, String), Status> {
    let mut request = Request::new(RotateKeyRequest {
        key_id: key_id.to_owned(),
        ..RotateKeyRequest::default()
    });
    request.set_timeout(deadline);
    let answer = admin.keys.clone().rotate_key(request).await?.into_inner();
    let key = answer.key.expect("a key");
    Ok((key.key_id, answer.plaintext_key))
}

async fn rotate_in_little_time(setup: &Setup) {
    let server = start(setup).await;
    let admin = server.admin().await;
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    let mut current = (key.key_id, plaintext);
    // How long it takes here and now.
    let began = Instant::now();
    for _ in 0..5 {
        let rotated = rotate(&admin, &current.0, DEADLINE).await;
        current = rotated.expect("there is time");
    }
    let usual = began.elapsed() / 5;
    let (mut delivered, mut late, mut lost) = (0, 0, 0);
    for number in 0..ROTATIONS {
        let deadline = usual * 3 / 2 * (number % 50 + 1) / 50;
        match rotate(&admin, &current.0, deadline).await {
            Ok(next) => {
                delivered += 1;
                current = next;
            }
            Err(status) if error_is(&status, "KEY_ROTATED") => {
                // An earlier call was cancelled while its COMMIT was under way.
                lost += 1;
                let (key, plaintext) = admin.issue("default", &["a"]).await;
                current = (key.key_id, plaintext);
            }
            Err(_) => late += 1,
        }
    }
    println!(
        "{ROTATIONS} rotations of about {usual:?} with deadlines up to half more: {delivered} were \
         delivered, {late} came too late, {lost} of them during COMMIT"
    );
    assert!(late > ROTATIONS / 10, "hardly any deadline was too short");
    assert!(
        lost * 10 <= ROTATIONS,
        "{lost} rotations were made for nobody"
    );
    assert_old_key_is_whole(&admin, current).await;
}

fn error_is(status: &Status, reason: &str) -> bool {
    status.code() == Code::FailedPrecondition && error_reason(status) == reason
}

/// A last rotation that has no chance: the key works and has no successor.
async fn assert_old_key_is_whole(admin: &Client, (key_id, plaintext): (String, String)) {
    let rotated = rotate(admin, &key_id, Duration::from_millis(1)).await;
    rotated.expect_err("a hash takes longer");
    let request = GetKeyRequest {
        key_id,
        ..GetKeyRequest::default()
    };
    let answer = admin.keys.clone().get_key(request).await;
    let key = answer.expect("the key is there").into_inner().key;
    let key = key.expect("a key");
    assert_eq!((key.state(), &*key.rotated_to), (KeyState::Active, ""));
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
}

async fn repeat_a_lost_create(setup: &Setup) {
    let server = start(setup).await;
    let admin = server.admin().await;
    let request = |number: usize| CreateKeyRequest {
        request_id: format!("request {number}"),
        ..new_key("default", &["a"])
    };
    // Whenever the call was cut off: repeated, it tells either that it was made or makes it.
    for number in 0..20 {
        let cut = Duration::from_millis(5 * number as u64);
        let _ = time::timeout(cut, admin.try_create(request(number))).await;
        match admin.try_create(request(number)).await {
            Ok(_) => {}
            Err(status) => assert_eq!(error_reason(&status), "REQUEST_REPEATED"),
        }
    }
    let keys = Inside::of(setup)
        .await
        .texts("SELECT key_id FROM keys")
        .await;
    assert_eq!(keys.len(), 20);
}
