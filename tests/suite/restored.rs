//! A database that was restored from a backup: who watched what was lost is told so.

use std::{fs, time::Duration};

use gatekey::api::proto::{
    EnforcementState, WatchEventsRequest, WatchEventsResponse, WatchStarted,
    watch_events_response::Message,
};
use tokio::time;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::{
    inside::Inside,
    program::Program,
    support::{
        Client, Database, Gatekey, Setup,
        client::{error_reason, next_event},
        on_both_engines,
    },
};

on_both_engines! {
    async fn a_watch_from_beyond_a_restored_log_is_refused(setup: Setup) {
        prove_beyond_is_refused(&setup).await;
    }

    async fn a_watch_of_another_store_is_refused_once_a_restored_one_has_its_own_id(setup: Setup) {
        prove_other_store_is_refused(&setup).await;
    }

    async fn a_stream_ends_when_its_log_becomes_another(setup: Setup) {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (_, mut stream) = watch(&admin, 0, "").await.expect("a stream");
        Inside::of(&setup).await.run("UPDATE log_head SET store_id = 'another'").await;
        admin.issue("default", &["jobs:read"]).await;
        let end = stream.message().await.expect_err("the log is another");
        assert_other_store(&end, "another");
    }
}

#[tokio::test]
async fn memberships_in_a_backup_end_when_it_is_marked_as_restored() {
    let setup = Gatekey::postgres(&Database::create().await).env("GATEKEY_LEASE", "1s");
    let server = setup.start().await;
    server.wait_for_log(r#""message":"joined""#).await;
    server.kill9();
    let restored = backup(&setup).await;
    let ids = "SELECT id FROM replicas";
    let mut inside = Inside::of(&restored).await;
    let before = inside.texts(ids).await;
    assert_eq!(before.len(), 1, "it had no time to leave");
    mark_restored(&restored).await;
    assert_eq!(inside.texts(ids).await, [format!("restored-{}", before[0])]);

    // It is waited for as a lost one is, and then no more.
    let server = restored.start().await;
    let admin = server.admin().await;
    let (key, _) = admin.issue("default", &["jobs:read"]).await;
    let answer = admin.revoke(&key, "").await;
    let enforcement = answer.enforcement.expect("an enforcement");
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
    let removed = time::timeout(Duration::from_secs(20), async {
        while inside.texts(ids).await.len() > 1 {
            time::sleep(Duration::from_millis(50)).await;
        }
    });
    removed.await.expect("others remove it");
    assert!(!inside.texts(ids).await[0].starts_with("restored-"));
}

#[tokio::test]
async fn a_replica_that_serves_while_its_database_is_marked_as_restored_joins_anew() {
    let setup = Gatekey::postgres(&Database::create().await).env("GATEKEY_LEASE", "1s");
    let server = setup.start().await;
    mark_restored(&setup).await;
    server.wait_for_log("joining anew").await;
    let admin = server.admin().await;
    let (key, _) = admin.issue("default", &["jobs:read"]).await;
    let answer = admin.revoke(&key, "").await;
    let enforcement = answer.enforcement.expect("an enforcement");
    assert_eq!(enforcement.state(), EnforcementState::Enforced);
}

async fn prove_beyond_is_refused(setup: &Setup) {
    let (restored, seen, started) = lose_changes(setup).await;
    // Also where nobody has said that it was restored.
    let server = restored.start().await;
    let admin = server.admin().await;
    let refused = watch(&admin, seen + 1, "")
        .await
        .expect_err("nothing is there");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    assert_eq!(error_reason(&refused), "REVISION_AHEAD");
    let head = started.head.to_string();
    let details = refused.get_details_error_info().expect("ErrorInfo");
    assert_eq!(details.metadata["head"], head);
    assert!(refused.message().contains(&head), "{}", refused.message());

    let next = started.head + 1;
    watch(&admin, next + 1, "")
        .await
        .expect_err("one revision is left out");
    let (again, mut stream) = watch(&admin, next, &started.store_id)
        .await
        .expect("the next one");
    assert_eq!(again, started);
    admin.issue("default", &["jobs:read"]).await;
    assert_eq!(next_event(&mut stream).await.revision, next);
}

async fn prove_other_store_is_refused(setup: &Setup) {
    let (restored, _, started) = lose_changes(setup).await;
    let id = mark_restored(&restored).await;
    assert_ne!(id, started.store_id);
    let server = restored.start().await;
    let admin = server.admin().await;
    let refused = watch(&admin, 1, &started.store_id).await;
    assert_other_store(&refused.expect_err("the store is another"), &id);
    for named in ["", &id] {
        let (now, mut stream) = watch(&admin, 1, named).await.expect("a stream");
        let head = started.head;
        assert_eq!(
            now,
            WatchStarted {
                store_id: id.clone(),
                head
            }
        );
        assert_eq!(next_event(&mut stream).await.revision, 1);
    }
}

/// A setup with a restored backup, the last revision that was seen before it was restored, and what a
/// stream began with when the backup was made.
async fn lose_changes(setup: &Setup) -> (Setup, i64, WatchStarted) {
    let server = setup.start().await;
    let admin = server.admin().await;
    for _ in 0..2 {
        admin.issue("default", &["jobs:read"]).await;
    }
    let (started, _) = watch(&admin, 0, "").await.expect("a stream");
    assert_eq!((started.head, started.store_id.len()), (2, 32));
    let stopped = server.stop().await;
    let restored = backup(setup).await;
    let server = stopped.start().await;
    let admin = server.admin().await;
    let (again, mut stream) = watch(&admin, 3, &started.store_id).await.expect("a stream");
    assert_eq!(again, started, "a restart makes no other store");
    let mut seen = 0;
    for _ in 0..3 {
        admin.issue("default", &["jobs:read"]).await;
        seen = next_event(&mut stream).await.revision;
    }
    assert_eq!(seen, 5);
    server.stop().await;
    (restored, seen, started)
}

/// The same setup on a copy of its database, which nobody may be using.
async fn backup(setup: &Setup) -> Setup {
    let url = setup.database_url();
    let copy = match url.strip_prefix("sqlite://") {
        None => Database::copy_of(url).await.url(),
        Some(file) => {
            let copy = format!("{file}.restored");
            fs::copy(file, &copy).expect("the database is a file");
            format!("sqlite://{copy}")
        }
    };
    setup.clone().env("GATEKEY_DATABASE_URL", copy)
}

/// Runs `gatekey migrate --restored`, and returns the new id.
async fn mark_restored(setup: &Setup) -> String {
    let ended = Program::of(setup, &["migrate", "--restored"]).end().await;
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(ended.stderr, "", "{ended:?}");
    let id = ended
        .stdout
        .split("store_id ")
        .nth(1)
        .expect("it says the id");
    id.chars().take_while(char::is_ascii_hexdigit).collect()
}

async fn watch(
    client: &Client,
    revision: i64,
    store_id: &str,
) -> Result<(WatchStarted, Streaming<WatchEventsResponse>), Status> {
    let request = WatchEventsRequest {
        start_revision: revision,
        store_id: store_id.to_owned(),
        ..WatchEventsRequest::default()
    };
    let mut stream = client
        .events
        .clone()
        .watch_events(request)
        .await?
        .into_inner();
    let first = stream.message().await?.expect("a first message");
    let Some(Message::Started(started)) = first.message else {
        panic!("the first message tells of the store: {first:?}");
    };
    Ok((started, stream))
}

#[track_caller]
fn assert_other_store(status: &Status, id: &str) {
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert_eq!(error_reason(status), "STORE_ID_MISMATCH");
    let details = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(details.metadata["store_id"], id);
}
