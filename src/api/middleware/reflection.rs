//! A request stream whose messages are read one by one, each after the previous response.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use http_body::{Body as HttpBody, Frame};
use pin_project_lite::pin_project;
use prost::bytes::{Bytes, BytesMut};
use tokio::time::{self, Sleep};
use tonic::Status;

use crate::api::{
    MESSAGE_MAX, middleware::budget::Charge, middleware::intake::REQUEST_MAX,
    middleware::outgoing::Sent, validate::decode::HEAD,
};

/// The flow control of a stream: the next message is read only after the response to the previous
/// one is sent.
#[derive(Clone, Default)]
pub(in crate::api) struct Turn(Arc<Shared>);

#[derive(Default)]
struct Shared {
    answering: AtomicBool,
    asker: Mutex<Option<Waker>>,
}

impl Sent for Turn {
    fn sent(&self) {
        self.0.answering.store(false, Ordering::Release);
        let asker = self.0.asker.lock();
        let asker = asker.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(asker) = asker {
            asker.wake();
        }
    }
}

impl Turn {
    /// Waits until no response is pending.
    fn poll(&self, cx: &mut Context<'_>) -> Poll<()> {
        let asker = self.0.asker.lock();
        *asker.unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if self.0.answering.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

pin_project! {
    /// A body that yields one message at a time. It ends if the next message is not complete within
    /// [`REQUEST_MAX`] of the response to the previous one.
    pub(in crate::api) struct Questions<B> {
        #[pin]
        inner: B,
        turn: Turn,
        read: BytesMut,
        charge: Charge,
        deadline: Pin<Box<Sleep>>,
        // True after a message, until the deadline of the next one is set.
        yielded: bool,
        inner_ended: bool,
    }
}

impl<B> Questions<B> {
    pub(in crate::api) fn new(inner: B, turn: Turn, charge: Charge) -> Self {
        Self {
            inner,
            turn,
            read: BytesMut::new(),
            charge,
            deadline: Box::pin(time::sleep(REQUEST_MAX)),
            yielded: false,
            inner_ended: false,
        }
    }
}

impl<B: HttpBody<Data = Bytes>> HttpBody for Questions<B> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut this = self.project();
        ready!(this.turn.poll(cx));
        if std::mem::take(this.yielded) {
            this.deadline.set(time::sleep(REQUEST_MAX));
        }
        loop {
            if let Some(length) = first(this.read) {
                this.turn.0.answering.store(true, Ordering::Release);
                *this.yielded = true;
                let message = this.read.split_to(length).freeze();
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            if *this.inner_ended {
                let rest = this.read.split().freeze();
                let rest = (!rest.is_empty()).then(|| Ok(Frame::data(rest)));
                return Poll::Ready(rest);
            }
            match this.inner.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    let before = this.read.capacity();
                    this.read.extend_from_slice(&data);
                    this.charge
                        .grow_by(this.read.capacity().saturating_sub(before))?;
                }
                Poll::Ready(Some(Err(_)) | None) => *this.inner_ended = true,
                Poll::Pending => {
                    ready!(this.deadline.as_mut().poll(cx));
                    return Poll::Ready(None);
                }
            }
        }
    }
}

/// Returns the length of the first message including its head, once it is complete. A message
/// longer than [`MESSAGE_MAX`] counts as complete once its head is read.
fn first(read: &[u8]) -> Option<usize> {
    let head = read.get(1..HEAD)?.try_into().ok()?;
    let length = u32::from_be_bytes(head) as usize;
    let whole = if length > MESSAGE_MAX {
        HEAD
    } else {
        HEAD + length
    };
    (read.len() >= whole).then_some(whole)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::api::middleware::budget::Class;

    /// A body of one message, after which the client sends nothing and ends nothing.
    struct OneMessage(Option<Bytes>);

    impl HttpBody for OneMessage {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.take().map_or(Poll::Pending, |data| {
                Poll::Ready(Some(Ok(Frame::data(data))))
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_response_takes_no_time_from_the_next_message() {
        let turn = Turn::default();
        let charge = Charge::take(Class::Stranger, 0).unwrap();
        let inner = OneMessage(Some(Bytes::from_static(&[0; HEAD])));
        let mut messages = Box::pin(Questions::new(inner, turn.clone(), charge));
        let mut next = async |within| {
            let next = poll_fn(|cx| messages.as_mut().poll_frame(cx));
            time::timeout(within, next).await
        };
        assert!(matches!(next(REQUEST_MAX).await, Ok(Some(Ok(_)))));
        time::sleep(REQUEST_MAX * 2).await;
        turn.sent();
        // The stream is still open, and ends only after the whole time for the next message.
        assert!(next(REQUEST_MAX / 2).await.is_err());
        assert!(matches!(next(REQUEST_MAX).await, Ok(None)));
    }
}
