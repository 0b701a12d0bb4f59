//! The services behind Envoy: they answer with the request that they received.

use std::{convert::Infallible, net::SocketAddr};

use http::{Request, Response};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;

/// Starts a service that speaks HTTP/1.1.
pub async fn http1() -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(echo));
            tokio::spawn(connection);
        }
    });
    addr
}

/// Starts a service that speaks HTTP/2.
pub async fn http2() -> SocketAddr {
    let (listener, addr) = listen().await;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(echo));
            tokio::spawn(connection);
        }
    });
    addr
}

/// Starts a gRPC service: `grpc.health.v1`.
pub async fn grpc() -> SocketAddr {
    let (listener, addr) = listen().await;
    let (_, health) = tonic_health::server::health_reporter();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(health)
            .serve_with_incoming(incoming),
    );
    addr
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await;
    let listener = listener.expect("there is a free port");
    let addr = listener.local_addr().expect("it listens");
    (listener, addr)
}

async fn echo(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    let headers = request.headers().iter();
    let headers = headers.map(|(name, value)| {
        let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
        (name.to_string(), Json::String(value))
    });
    let body = json!({
        "path": request.uri().path_and_query().map(ToString::to_string),
        "version": format!("{:?}", request.version()),
        "headers": headers.collect::<serde_json::Map<_, _>>(),
    });
    Ok(Response::new(body.to_string()))
}
