//! A real Envoy that asks gatekey: what it forwards, what it refuses, and what it answers if gatekey cannot decide.

mod check;
mod outage;
mod proxy;
mod routes_file;
mod rules;
mod upstream;

use std::net::SocketAddr;

use serde_json::{Value as Json, json};
use tokio::task::block_in_place;

use self::proxy::{Envoy, Setup};
use crate::support::{Client, Gatekey, prometheus};

/// Envoy with a credential that may validate every key. The service of the orders needs the scope `orders:read`.
async fn envoy_of_orders(server: &Gatekey, admin: &Client) -> Envoy {
    let rule = json!({ "gatekey.tenant": "acme", "gatekey.scopes": "orders:read" });
    envoy_of(server, admin, vec![("/orders", "orders", rule)]).await
}

/// Envoy with these routes and a credential that may validate every key.
async fn envoy_of(
    server: &Gatekey,
    admin: &Client,
    routes: Vec<(&'static str, &'static str, Json)>,
) -> Envoy {
    setup(server.addr(), admin, routes).await.start().await
}

async fn setup(
    gatekey: SocketAddr,
    admin: &Client,
    routes: Vec<(&'static str, &'static str, Json)>,
) -> Setup {
    let (_, credential) = admin.issue("system", &["*:keys:validate"]).await;
    Setup {
        gatekey,
        credential,
        routes,
        filter: Json::Null,
        filters: None,
    }
}

/// The metrics of gatekey.
fn metrics_of(server: &Gatekey) -> String {
    let page = block_in_place(|| prometheus::get(server.metrics(), "/metrics"));
    page.expect("it answers").1
}

/// The header of a credential.
fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}")
}
