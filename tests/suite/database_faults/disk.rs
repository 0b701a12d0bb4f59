//! A disk that is full for a while.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::Command,
};

use gatekey::api::proto::Reason;
use tempfile::TempDir;
use tonic::Code;

use super::{change, logged, recovered, writable};
use crate::{
    program::Program,
    support::{Client, Gatekey, tool},
};

/// How many changes fit at most into what is left of a full disk: SQLite writes again what it has.
const FIT: usize = 5_000;

/// A small file system of its own.
struct Disk(TempDir);

impl Disk {
    fn mount() -> Self {
        let folder = TempDir::with_prefix("gatekey-disk-").expect("a temporary folder");
        assert!(
            rustix::process::geteuid().is_root(),
            "a small disk can be mounted by root only: run this test as root, e.g. in `unshare -rm`"
        );
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "gatekey-test"]);
        tool::run(mount.arg(folder.path()));
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = File::create(self.path().join("filler")).expect("a file");
        for size in [64 * 1024, 4096, 1] {
            while file.write(&vec![1; size]).is_ok_and(|written| written > 0) {}
        }
    }

    fn free(&self) {
        fs::remove_file(self.path().join("filler")).expect("the disk was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("-l")
            .arg(self.path())
            .status()
            .ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_possible_again_soon_after_the_disk_was_full() {
    let disk = Disk::mount();
    let url = format!("sqlite://{}", disk.path().join("gatekey.db").display());
    let setup = Gatekey::sqlite()
        .env("GATEKEY_DATABASE_URL", url)
        .env("GATEKEY_METRICS_LISTEN", "127.0.0.1:0");
    let server = setup.start().await;
    let admin = server.admin().await;
    let (key, plaintext) = admin.issue("default", &["a"]).await;
    let unseen = admin.issue("default", &["a"]).await.1;
    assert_eq!(admin.reason(&plaintext).await, Reason::Allowed);
    assert!(writable(&server));

    disk.fill();
    until_full(&admin).await;
    // Again and again: each attempt must leave a connection that works.
    for _ in 0..10 {
        let refused = change(&admin, "alice").await.expect_err("a full disk");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }
    assert!(!writable(&server));
    for plaintext in [&plaintext, &unseen] {
        assert_eq!(admin.reason(plaintext).await, Reason::Allowed);
    }
    // Once an outage: where a few bytes are left, a small write may succeed between two that fail.
    let recoveries = logged(&server, "the database takes changes again");
    let outages = logged(&server, "the database takes no changes: nothing");
    assert!(
        outages == recoveries + 1 && outages <= 3,
        "{outages} {recoveries}"
    );

    disk.free();
    let took = recovered(|| async { change(&admin, "alice").await.is_ok() }).await;
    println!("changes possible again after {took:?}");
    admin.revoke(&key, "").await;
    assert_eq!(admin.reason(&plaintext).await, Reason::Revoked);
    assert!(writable(&server));

    // The gauge does not wait for a change.
    disk.fill();
    until_full(&admin).await;
    disk.free();
    let took = recovered(|| async { writable(&server) }).await;
    println!("the gauge says so after {took:?}");
    server.stop().await;
}

async fn until_full(admin: &Client) {
    for number in 0..FIT {
        if change(admin, &format!("owner {number}")).await.is_err() {
            return;
        }
    }
    panic!("the disk is not full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_says_so_at_once() {
    let disk = Disk::mount();
    disk.fill();
    let setup = Gatekey::sqlite();
    let url = format!("sqlite://{}", disk.path().join("gatekey.db").display());
    let ended = Program::of(&setup, &[])
        .env("GATEKEY_DATABASE_URL", url)
        .end()
        .await;
    let line = ended.deny_reason();
    assert!(line.contains("disk is full"), "{line}");
    assert!(ended.took < super::opening::AT_ONCE, "{ended:?}");
}
