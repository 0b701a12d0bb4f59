//! One single-threaded runtime a core, each with a server of its own; one acceptor deals every connection to the worker
//! that has the fewest. The least that gRPC costs in tonic, for a handler that does nothing.

use std::{
    io,
    net::TcpListener,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
};

use gatekey::api::proto::key_service_server::KeyServiceServer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    runtime,
    sync::mpsc,
};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::transport::{
    Server,
    server::{Connected, TcpConnectInfo},
};

use crate::baseline::{Handler, cores};

/// Serves until the process ends.
pub fn serve(listener: &TcpListener, service: &KeyServiceServer<Handler>) -> ! {
    let workers: Vec<_> = (0..cores())
        .map(|_| Worker::start(service.clone()))
        .collect();
    loop {
        let (stream, _) = listener.accept().expect("the listener stays open");
        stream.set_nodelay(true).expect("a TCP stream");
        stream.set_nonblocking(true).expect("a TCP stream");
        let least = workers
            .iter()
            .min_by_key(|worker| worker.open.load(Ordering::Relaxed));
        least.expect("there is a core").deal(stream);
    }
}

/// A thread with its runtime and its server.
struct Worker {
    connections: mpsc::UnboundedSender<(std::net::TcpStream, LoadSlot)>,
    open: Arc<AtomicUsize>,
}

impl Worker {
    fn start(service: KeyServiceServer<Handler>) -> Self {
        let (connections, dealt) = mpsc::unbounded_channel();
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            let incoming = UnboundedReceiverStream::new(dealt).map(|(stream, place)| {
                TcpStream::from_std(stream).map(|stream| Connection {
                    stream,
                    _place: place,
                })
            });
            let server = Server::builder().add_service(service);
            runtime
                .expect("a runtime")
                .block_on(server.serve_with_incoming(incoming))
        });
        Self {
            connections,
            open: Arc::default(),
        }
    }

    fn deal(&self, stream: std::net::TcpStream) {
        let place = LoadSlot::take(&self.open);
        self.connections.send((stream, place)).ok();
    }
}

/// One connection in a worker's count, for as long as it lives.
struct LoadSlot(Arc<AtomicUsize>);

impl LoadSlot {
    fn take(open: &Arc<AtomicUsize>) -> Self {
        open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(open))
    }
}

impl Drop for LoadSlot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A connection that is counted.
struct Connection {
    stream: TcpStream,
    _place: LoadSlot,
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
