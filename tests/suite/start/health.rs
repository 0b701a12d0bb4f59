//! `gatekey health`, and what probes are told.

use std::net::{SocketAddr, TcpListener};

use tokio::task::block_in_place;

use crate::{
    program::{Ended, Program},
    support::{Database, Gatekey, Setup, on_both_engines, postgres::Cluster},
};

on_both_engines! {
    async fn a_server_that_serves_is_healthy(setup: Setup) {
        let server = setup.start().await;
        server.wait_for_log(r#""message":"ready""#).await;
        health(&setup, server.addr()).await.was_silent();
    }
}

#[tokio::test]
async fn a_server_on_all_addresses_is_asked_on_its_own() {
    let setup = Gatekey::sqlite().env("GATEKEY_LISTEN", "0.0.0.0:0");
    let server = setup.start().await;
    server.wait_for_log(r#""message":"ready""#).await;
    assert!(server.addr().ip().is_unspecified());
    health(&setup, server.addr()).await.was_silent();
}

#[tokio::test]
async fn where_nobody_listens_is_not_healthy() {
    let setup = Gatekey::sqlite();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = nobody.local_addr().expect("it is bound");
    drop(nobody);
    let ended = health(&setup, address).await;
    assert!(ended.deny_reason().contains("is not ready"), "{ended:?}");
}

#[tokio::test]
async fn what_listens_and_never_answers_is_not_healthy() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = silent.local_addr().expect("it is bound");
    let ended = health(&Gatekey::sqlite(), address).await;
    assert!(ended.deny_reason().contains("is not ready"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_its_store_is_alive_and_not_ready_until_the_store_is_back() {
    let cluster = block_in_place(Cluster::start);
    let setup = Gatekey::postgres(&Database::create_in(&cluster).await);
    let server = setup.start().await;
    server.wait_for_log(r#""message":"ready""#).await;

    block_in_place(|| cluster.stop());
    server.wait_for_log("not ready").await;
    let ended = health(&setup, server.addr()).await;
    assert!(ended.deny_reason().contains("is not ready"), "{ended:?}");
    let mut probe =
        tonic_health::pb::health_client::HealthClient::new(server.admin().await.channel);
    let request = tonic_health::pb::HealthCheckRequest::default();
    let alive = probe
        .check(request)
        .await
        .expect("it is alive")
        .into_inner();
    assert_eq!(
        alive.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );

    let mut watch = probe
        .watch(tonic_health::pb::HealthCheckRequest {
            service: "gatekey.v1.KeyService".to_owned(),
        })
        .await
        .expect("it tells of its health")
        .into_inner();
    block_in_place(|| cluster.start_again());
    loop {
        let told = watch.message().await.expect("it goes on telling");
        if told.expect("it does not end").status()
            == tonic_health::pb::health_check_response::ServingStatus::Serving
        {
            break;
        }
    }
    health(&setup, server.addr()).await.was_silent();
}

/// Asks as a container would, with the server's own settings.
async fn health(setup: &Setup, address: SocketAddr) -> Ended {
    Program::of(setup, &["health"])
        .env("GATEKEY_LISTEN", address.to_string())
        .end()
        .await
}
