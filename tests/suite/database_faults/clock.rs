//! A wall clock that is set back.

use std::{fs, path::Path, process::Command, time::Duration};

use gatekey::api::proto::{CreateKeyRequest, Reason};

use crate::{
    program::Program,
    support::{Setup, client::new_key, on_both_engines, tool},
};

const BACK: i64 = -3600;

/// A server whose wall clock is off by the seconds that a file has.
fn movable(setup: Setup) -> Setup {
    let library = setup.folder().join("clock.so");
    build_clock(&library);
    let offset = setup.folder().join("offset").display().to_string();
    setup
        .env("LD_PRELOAD", library.display().to_string())
        .env("CLOCK_OFFSET", offset)
}

fn turn(setup: &Setup, seconds: i64) {
    fs::write(setup.folder().join("offset"), seconds.to_string()).expect("the folder takes files");
}

async fn expired_keys_stay_expired(setup: Setup) {
    let setup = movable(setup);
    let server = setup.start().await;
    let admin = server.admin().await;
    let short = CreateKeyRequest {
        ttl: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..new_key("default", &["a"])
    };
    let (first, plaintext) = admin.create(short).await;
    while admin.reason(&plaintext).await != Reason::Expired {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    turn(&setup, BACK);
    assert_eq!(admin.reason(&plaintext).await, Reason::Expired);
    let (second, _) = admin.issue("default", &["a"]).await;
    let at = |key: &gatekey::api::proto::Key| key.created_at.expect("a time").seconds;
    assert!(at(&second) > at(&first), "{first:?} {second:?}");
}

async fn refuses_a_start_in_the_past(setup: Setup) {
    let setup = movable(setup);
    let server = setup.start().await;
    server.admin().await.issue("default", &["a"]).await;
    server.stop().await;
    turn(&setup, BACK);
    let (_, stderr) = setup.start_expecting_failure().await;
    let line = stderr.lines().last().expect("a refusal says why");
    assert!(
        line.starts_with("gatekey: the clock is wrong: it says 20"),
        "{line}"
    );
    assert!(
        line.contains("before the newest event in the database, of 20"),
        "{line}"
    );
    // A little is waited for: clocks of replicas differ.
    turn(&setup, -3);
    setup
        .start()
        .await
        .wait_for_log(r#""message":"ready""#)
        .await;
    Program::of(&setup, &["migrate"]).end().await.was_silent();
}

on_both_engines! {
    async fn a_clock_that_is_set_back_revives_no_key(setup: Setup) {
        expired_keys_stay_expired(setup).await;
    }

    async fn a_server_does_not_start_before_the_newest_event(setup: Setup) {
        refuses_a_start_in_the_past(setup).await;
    }
}

/// A library that, loaded before libc, moves the wall clock.
fn build_clock(library: &Path) {
    const SOURCE: &str = r#"
        #define _GNU_SOURCE
        #include <stdio.h>
        #include <stdlib.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>

        int clock_gettime(clockid_t clock, struct timespec *time) {
            int failed = syscall(SYS_clock_gettime, clock, time);
            const char *path = getenv("CLOCK_OFFSET");
            if (failed || clock != CLOCK_REALTIME || !path) return failed;
            FILE *file = fopen(path, "r");
            long offset = 0;
            if (file) {
                if (fscanf(file, "%ld", &offset) != 1) offset = 0;
                fclose(file);
            }
            time->tv_sec += offset;
            return 0;
        }
    "#;
    let source = library.with_extension("c");
    fs::write(&source, SOURCE).expect("the folder takes files");
    // It is there: SQLite itself was built with it.
    let mut compile = Command::new("cc");
    compile
        .args(["-shared", "-fPIC", "-o"])
        .arg(library)
        .arg(&source);
    tool::run(&mut compile);
}
