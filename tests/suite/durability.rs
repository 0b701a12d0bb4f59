//! What was answered is on the disk: it survives `kill -9` of the server at any moment, and a crash of PostgreSQL.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use gatekey::api::proto::{
    CreateKeyRequest, Event, EventType, Key, KeyState, ListEventsRequest, ListKeysRequest, Reason,
    RevokeKeyRequest,
};
use tokio::{
    sync::watch,
    task::{JoinSet, block_in_place},
};
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::support::client::key_target;
use crate::{
    inside::Inside,
    support::{
        Client, Database, Gatekey,
        client::{error_reason, new_key},
        on_both_engines,
        postgres::Cluster,
        tool,
    },
};

/// How often the server is killed after one answer.
const KILLS: usize = 100;
/// How often it is killed amid a stream of changes, and how many callers make them.
const STREAMS: u64 = 5;
const CALLERS: usize = 8;

on_both_engines! {
    async fn what_was_answered_is_there_after_each_of_a_hundred_kills(setup: Setup) {
        let mut issued: Vec<(Key, String, Reason)> = Vec::new();
        for kill in 0..KILLS {
            let server = setup.start().await;
            let admin = server.admin().await;
            if let Some((_, plaintext, reason)) = issued.last() {
                assert_eq!(admin.reason(plaintext).await, *reason, "after kill {kill}");
            }
            match issued.last_mut() {
                Some((key, _, reason)) if kill % 2 == 1 => {
                    admin.revoke(key, "over").await;
                    *reason = Reason::Revoked;
                }
                _ => {
                    let (key, plaintext) = admin.issue("default", &["jobs:read"]).await;
                    issued.push((key, plaintext, Reason::Allowed));
                }
            }
            server.kill9();
        }

        let server = setup.start().await;
        let admin = server.admin().await;
        for (_, plaintext, reason) in &issued {
            assert_eq!(admin.reason(plaintext).await, *reason);
        }
        let keys = all_keys(&admin).await;
        assert_eq!(keys.len(), KILLS / 2);
        assert!(keys.iter().all(|key| key.state() == KeyState::Revoked));
        told_by_the_log(&keys, &all_events(&admin).await);
    }

    async fn a_kill_amid_many_changes_loses_none_that_was_answered_and_halves_none(setup: Setup) {
        for stream in 0..STREAMS {
            let server = setup.start().await;
            let (answers, mut answered) = watch::channel(0);
            let mut callers = JoinSet::new();
            for caller in 0..CALLERS {
                let name = format!("{stream}-{caller}");
                callers.spawn(churn(server.admin().await, name, answers.clone()));
            }
            let enough = rand::random_range(20..80);
            let reached = answered.wait_for(|count| *count >= enough).await.is_ok();
            assert!(reached, "the callers go on until the server is gone");
            server.kill9();
            let asked = callers.join_all().await.concat();
            assert!(asked.len() > CALLERS);

            let server = setup.start().await;
            let admin = server.admin().await;
            for asked in &asked {
                asked.repeat(&admin).await;
            }
            let keys = all_keys(&admin).await;
            for asked in &asked {
                asked.is_whole(&admin, &keys).await;
            }
            told_by_the_log(&keys, &all_events(&admin).await);
            server.kill9();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_is_there_after_a_crash_of_postgresql() {
    let cluster = block_in_place(Cluster::start);
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    let mut issued = Vec::new();
    for _ in 0..3 {
        let server = setup.start().await;
        let admin = server.admin().await;
        let (revoked, _) = admin.issue("default", &["jobs:read"]).await;
        admin.revoke(&revoked, "over").await;
        issued.push(admin.issue("default", &["jobs:read"]).await.1);
        // At once: what PostgreSQL would have written in a moment is lost.
        block_in_place(|| cluster.stop());
        server.kill9();
        block_in_place(|| cluster.start_again());
    }
    let server = setup.start().await;
    let admin = server.admin().await;
    for plaintext in &issued {
        assert_eq!(admin.reason(plaintext).await, Reason::Allowed);
    }
    let keys = all_keys(&admin).await;
    assert_eq!(keys.len(), 2 * issued.len());
    told_by_the_log(&keys, &all_events(&admin).await);
}

#[tokio::test]
async fn sqlite_keeps_a_write_ahead_log() {
    let server = Gatekey::sqlite().start().await;
    let mut inside = Inside::of(server.setup()).await;
    assert_eq!(inside.texts("PRAGMA journal_mode").await, ["wal"]);
}

/// `PRAGMA synchronous` is each connection's own, so that nobody else can ask for the server's. What it is for can be
/// seen: with FULL the log is synced for each change, with NORMAL only at a checkpoint.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn sqlite_is_synced_to_the_disk_before_each_answer() {
    let setup = Gatekey::sqlite();
    let (library, syncs) = (setup.folder().join("tell.so"), setup.folder().join("syncs"));
    build_sync_teller(&library);
    let setup = setup
        .env("LD_PRELOAD", library.display().to_string())
        .env("TELL_SYNCS", syncs.display().to_string());
    let server = setup.start().await;
    let admin = server.admin().await;
    let count = || {
        let syncs = fs::read_to_string(&syncs).expect("the start made a database");
        syncs
            .lines()
            .filter(|file| file.ends_with("gatekey.db-wal"))
            .count()
    };
    let mut before = count();
    let mut synced = || {
        let after = count();
        assert!(after > before, "it answered before it synced");
        before = after;
    };
    for _ in 0..10 {
        let (key, _) = admin.issue("default", &["jobs:read"]).await;
        synced();
        admin.revoke(&key, "over").await;
        synced();
    }
}

/// A library that, loaded before libc, writes the path of each file to `$TELL_SYNCS` that is synced.
fn build_sync_teller(library: &Path) {
    const SOURCE: &str = r#"
        #include <fcntl.h>
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <unistd.h>

        static void tell(int file) {
            char link[64], path[4096];
            snprintf(link, sizeof link, "/proc/self/fd/%d", file);
            ssize_t length = readlink(link, path, sizeof path - 1);
            if (length < 0) return;
            path[length] = '\n';
            int told = open(getenv("TELL_SYNCS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
            if (write(told, path, length + 1) < 0) abort();
            close(told);
        }
        int fsync(int file) { int ended = syscall(SYS_fsync, file); tell(file); return ended; }
        int fdatasync(int file) { int ended = syscall(SYS_fdatasync, file); tell(file); return ended; }
    "#;
    let source = library.with_extension("c");
    fs::write(&source, SOURCE).expect("the folder takes files");
    // It is there: SQLite itself was built with it.
    tool::run(
        Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([library, &source]),
    );
}

/// One key that a caller asked for, and perhaps asked to revoke.
#[derive(Clone)]
struct Asked {
    /// Its `request_id`, and its label.
    name: String,
    /// What was answered, if anything was.
    created: Option<(Key, String)>,
    revoking: bool,
    revoked: bool,
}

/// Creates keys, and revokes every other one, until the server is gone.
async fn churn(admin: Client, caller: String, answers: watch::Sender<u32>) -> Vec<Asked> {
    let mut all = Vec::new();
    loop {
        let mut asked = Asked {
            name: format!("{caller}-{}", all.len()),
            created: None,
            revoking: false,
            revoked: false,
        };
        if let Ok(answer) = admin.try_create(asked.request()).await {
            let key = answer.key.expect("a key");
            answers.send_modify(|count| *count += 1);
            if all.len() % 2 == 0 {
                asked.revoking = true;
                asked.revoked = try_revoke(&admin, &key).await;
                answers.send_modify(|count| *count += u32::from(asked.revoked));
            }
            asked.created = Some((key, answer.plaintext_key));
        }
        let gone = asked.created.is_none() || asked.revoking != asked.revoked;
        all.push(asked);
        if gone {
            return all;
        }
    }
}

/// Whether it was answered.
async fn try_revoke(admin: &Client, key: &Key) -> bool {
    let request = RevokeKeyRequest {
        tenant_id: key.tenant_id.clone(),
        target: key_target(key.key_id.clone()),
        reason: "over".to_owned(),
    };
    admin.keys.clone().revoke_key(request).await.is_ok()
}

impl Asked {
    fn request(&self) -> CreateKeyRequest {
        CreateKeyRequest {
            label: self.name.clone(),
            request_id: self.name.clone(),
            ..new_key("default", &["jobs:read"])
        }
    }

    /// Asks again, as a caller would who got no answer; one who did is told of the key it made.
    async fn repeat(&self, admin: &Client) {
        let again = admin.try_create(self.request()).await;
        let Some((key, _)) = &self.created else {
            let status = again.map(drop).err();
            assert!(status.is_none_or(|status| status.code() == Code::AlreadyExists));
            return;
        };
        let status = again.expect_err("the first one is known");
        assert_eq!(status.code(), Code::AlreadyExists, "{status:?}");
        assert_eq!(error_reason(&status), "REQUEST_REPEATED");
        let info = status.get_details_error_info().expect("ErrorInfo");
        assert_eq!(info.metadata["key_id"], key.key_id);
    }

    /// There is one such key, and it is what was answered.
    async fn is_whole(&self, admin: &Client, keys: &[Key]) {
        let found: Vec<_> = keys.iter().filter(|key| key.label == self.name).collect();
        let [found] = found[..] else {
            panic!("{} keys for one request", found.len());
        };
        let Some((key, plaintext)) = &self.created else {
            return;
        };
        assert_eq!(found.key_id, key.key_id);
        let reason = admin.reason(plaintext).await;
        if self.revoked {
            assert_eq!(reason, Reason::Revoked);
        } else if !self.revoking {
            assert_eq!(reason, Reason::Allowed);
        }
        let revoked = found.state() == KeyState::Revoked;
        assert_eq!(reason == Reason::Revoked, revoked, "{found:?}");
    }
}

/// Asserts that the log tells exactly what was done to these keys: each made by one event, each revoked one revoked by
/// one, each at the revision of its last event, and nothing else.
fn told_by_the_log(keys: &[Key], events: &[Event]) {
    let mut told: BTreeMap<&str, Vec<EventType>> = BTreeMap::new();
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let revision = i64::try_from(place).expect("few events") + 1;
        assert_eq!(event.revision, revision, "a change without its event");
        told.entry(&event.key_id).or_default().push(event.r#type());
        last.insert(&event.key_id, revision);
    }
    for key in keys {
        let mut expected = vec![EventType::KeyCreated];
        if key.state() == KeyState::Revoked {
            expected.push(EventType::KeyRevoked);
        }
        assert_eq!(told.remove(&*key.key_id), Some(expected), "{key:?}");
        assert_eq!(last[&*key.key_id], key.revision, "{key:?}");
    }
    assert!(told.is_empty(), "events of no key: {told:?}");
}

/// All keys of tenant `default`.
async fn all_keys(admin: &Client) -> Vec<Key> {
    let (mut keys, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListKeysRequest {
            tenant_id: "default".to_owned(),
            page_size: 1000,
            page_token,
            ..ListKeysRequest::default()
        };
        let page = admin.keys.clone().list_keys(request).await;
        let page = page.expect("a page").into_inner();
        keys.extend(page.keys);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            let ids: BTreeSet<_> = keys.iter().map(|key| &key.key_id).collect();
            assert_eq!(ids.len(), keys.len());
            return keys;
        }
    }
}

/// The whole log, oldest first.
async fn all_events(admin: &Client) -> Vec<Event> {
    let (mut events, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListEventsRequest {
            page_size: 1000,
            page_token,
            ..ListEventsRequest::default()
        };
        let page = admin.events.clone().list_events(request).await;
        let page = page.expect("a page").into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            events.reverse();
            return events;
        }
    }
}
