//! PgBouncer in transaction mode: each transaction may run in another session of the database than the one before it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::Child,
};

use super::{
    postgres::{Account, guarded},
    tool,
};

/// A running pooler; ended on drop, and when the test process ends.
pub struct Pgbouncer {
    addr: SocketAddr,
    guard: Child,
}

impl Pgbouncer {
    /// Starts one before the cluster at `store`, with these further settings, and waits until it takes connections.
    pub fn start(store: SocketAddr, settings: &[&str]) -> Pgbouncer {
        for _ in 0..20 {
            let port = rand::random_range(20_000..32_000);
            match Pgbouncer::launch(store, port, settings) {
                Ok(pooler) => return pooler,
                Err(log) if log.contains("Address already in use") => {}
                Err(log) => panic!("PgBouncer did not start:\n{log}"),
            }
        }
        panic!("PgBouncer found no free port in 20 attempts");
    }

    /// Where it takes connections.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn launch(store: SocketAddr, port: u16, settings: &[&str]) -> Result<Pgbouncer, String> {
        let folder = tempfile::Builder::new()
            .prefix("gatekey-pgbouncer-")
            .tempdir()
            .expect("a temporary folder")
            .keep();
        let (host, store_port) = (store.ip(), store.port());
        let config = format!(
            "[databases]\n* = host={host} port={store_port} user=postgres\n[pgbouncer]\nlisten_addr=127.0.0.1\n\
             listen_port={port}\nunix_socket_dir=\nauth_type=any\npool_mode=transaction\n{}\n",
            settings.join("\n")
        );
        let path = folder.join("pgbouncer.ini");
        fs::write(&path, config).expect("the folder is ours");
        let mut words = tool::pgbouncer();
        if let Some(account) = Account::needed() {
            words.extend(["-u".to_owned(), account.name.to_owned()]);
        }
        words.push(path.display().to_string());
        let mut guard = guarded(&folder, &words);

        let mut stderr = BufReader::new(guard.stderr.take().expect("stderr is a pipe"));
        let mut log = String::new();
        while !log.contains("process up") {
            if stderr.read_line(&mut log).expect("PgBouncer logs UTF-8") == 0 {
                guard.wait().expect("the guard is our child");
                return Err(log);
            }
        }
        // A full pipe would block it.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let addr = (Ipv4Addr::LOCALHOST, port).into();
        Ok(Pgbouncer { addr, guard })
    }
}

impl Drop for Pgbouncer {
    fn drop(&mut self) {
        self.guard.wait().ok(); // this closes its stdin first
    }
}
