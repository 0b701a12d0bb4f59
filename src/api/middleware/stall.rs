//! Resets streams whose peer reads nothing.
//!
//! hyper polls a response body again only after the peer's window has accepted the previous bytes.
//! Thus a body cannot end itself while its peer reads nothing. The stream's task can: dropping it
//! resets the stream and frees the bytes that wait to be sent.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{self, Sleep};

/// Timeout for a peer to read each piece of a response.
const STALL_MAX: Duration = Duration::from_secs(30);

thread_local! {
    /// The last action of a body during the current poll of its stream.
    static DID: Cell<Option<Did>> = const { Cell::new(None) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Did {
    Give,
    Wait,
}

/// Records that a body yielded bytes that its peer must read.
pub(in crate::api) fn gave() {
    DID.set(Some(Did::Give));
}

/// Records that a body has nothing for its peer to read.
pub(in crate::api) fn waits() {
    DID.set(Some(Did::Wait));
}

/// Runs the streams of a connection and resets each stream whose peer reads nothing for 30 s.
#[derive(Clone, Copy, Debug)]
pub struct StreamExecutor;

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        tokio::spawn(Stalling {
            stream,
            stall: None,
        });
    }
}

pin_project! {
    struct Stalling<F> {
        #[pin]
        stream: F,
        stall: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Stalling<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        DID.set(None);
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match DID.get() {
            Some(Did::Give) => *this.stall = Some(Box::pin(time::sleep(STALL_MAX))),
            Some(Did::Wait) => *this.stall = None,
            None => {}
        }
        let Some(stall) = this.stall else {
            return Poll::Pending;
        };
        ready!(stall.as_mut().poll(cx));
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Arc};

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_stream_whose_peer_reads_nothing_is_ended() {
        let (give, mut did) = mpsc::unbounded_channel();
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        let stream = poll_fn(move |cx| {
            assert!(Arc::strong_count(&held) > 0);
            while let Poll::Ready(Some(did)) = did.poll_recv(cx) {
                DID.set(Some(did));
            }
            Poll::<()>::Pending
        });
        hyper::rt::Executor::execute(&StreamExecutor, stream);
        let ended = || Arc::strong_count(&alive) == 1;
        time::sleep(STALL_MAX * 2).await;
        assert!(!ended(), "it has given nothing");
        give.send(Did::Give).unwrap();
        time::sleep(STALL_MAX / 2).await;
        give.send(Did::Wait).unwrap();
        time::sleep(STALL_MAX * 2).await;
        assert!(!ended(), "all was read in time");
        give.send(Did::Give).unwrap();
        time::sleep(STALL_MAX * 2).await;
        assert!(ended());
    }
}
