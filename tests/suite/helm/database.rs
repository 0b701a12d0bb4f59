//! The database by host, port, name, user and password.

use std::fs;

use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use super::{env, release, variable};
use crate::support::{Database, Gatekey, postgres::Cluster};

/// Every kind of character that a URL, a shell or Kubernetes could take for something else.
const PASSWORD: &str = r#"p@ss:/?#[]&= %25+"'`\$(HOME)$HOME!ü"#;

/// A cluster that asks all roles but `postgres` for a password.
async fn cluster_with_passwords() -> (Cluster, Database) {
    let cluster = tokio::task::spawn_blocking(Cluster::start)
        .await
        .expect("it starts");
    let database = Database::create_in(&cluster).await;
    let rules = "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n";
    fs::write(cluster.socket_folder().join("data/pg_hba.conf"), rules).expect("it is ours");
    let mut connection = database.connect().await;
    let quoted = PASSWORD.replace('\'', "''");
    for statement in [
        format!(r#"CREATE ROLE "key user@1" LOGIN PASSWORD '{quoted}'"#),
        r#"CREATE DATABASE "keys/1?" OWNER "key user@1" TEMPLATE template0"#.to_owned(),
        "SELECT pg_reload_conf()".to_owned(),
    ] {
        let run = connection.execute(AssertSqlSafe(statement.clone())).await;
        run.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
    (cluster, database)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_by_parts_takes_any_password() {
    let (cluster, database) = cluster_with_passwords().await;
    let release = release(json!({"database": {
        "host": "127.0.0.1",
        "port": cluster.addr().port(),
        "name": "keys/1?",
        "user": "key user@1",
        "password": {"existingSecret": "db", "key": "pw"},
        "sslMode": "disable",
    }}));
    let init = release.migration();
    for container in [init, release.server()] {
        let from = json!({"secretKeyRef": {"name": "db", "key": "pw"}});
        assert_eq!(container["env"][1]["name"], "PGPASSWORD");
        assert_eq!(container["env"][1]["valueFrom"], from);
        let values = env(container);
        assert!(
            values
                .iter()
                .all(|(_, value)| value.is_none_or(|it| !it.contains("pw")))
        );
    }
    let url = variable(release.server(), "GATEKEY_DATABASE_URL");
    assert_eq!(url, variable(init, "GATEKEY_DATABASE_URL"));

    let setup = Gatekey::postgres(&database).env("GATEKEY_DATABASE_URL", url);
    let server = setup.clone().env("PGPASSWORD", PASSWORD).start().await;
    server.wait_for_log(r#""message":"ready""#).await;
    let stopped = server.stop().await;
    for secret in [PASSWORD, "p@ss"] {
        assert!(!stopped.logs().contains(secret), "{}", stopped.logs());
    }

    let (_, stderr) = setup
        .env("PGPASSWORD", "wrong")
        .start_expecting_failure()
        .await;
    assert!(
        stderr.contains("password authentication failed"),
        "{stderr}"
    );
}

#[test]
fn a_database_url_from_parts_quotes_each_of_them() {
    let url = |database| {
        let release = release(json!({"database": database}));
        variable(release.server(), "GATEKEY_DATABASE_URL").to_owned()
    };
    assert_eq!(
        url(json!({"host": "db"})),
        "postgres://gatekey@db:5432/gatekey"
    );
    assert_eq!(
        url(
            json!({"host": "fd00::1", "user": "a b", "name": "ü%", "sslMode": "verify-full", "sslRootCert": "/a b.crt"})
        ),
        "postgres://a%20b@[fd00::1]:5432/%C3%BC%25?sslmode=verify-full&sslrootcert=%2Fa%20b.crt"
    );
    assert_eq!(
        url(json!({"host": "/cloudsql/p:r:i"})),
        "postgres://gatekey@%2Fcloudsql%2Fp%3Ar%3Ai:5432/gatekey"
    );
}
