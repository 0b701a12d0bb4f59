//! RPC metrics: counts and times calls from their arrival to their end.
//!
//! Each thread counts its hot calls in arrays of its own, with one increment per decision. Only one
//! in [`SAMPLED`] hot calls of a thread is timed, so that the clock is seldom read. Database
//! queries, the cause of slow ones, are always timed.

use std::{
    array,
    cell::Cell,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{self, HeaderMap},
};
use tonic_types::StatusExt as _;
use tracing::info;

use crate::api::{
    Api, Peer,
    caller::Asker,
    convert::response,
    ext_authz::{self, NO_RULE},
    hot_call::{Encode as _, HotCall},
    method::{self, HOT, METHODS},
    proto::Reason,
    validate::decode::Reply,
};
use crate::metrics::{Collect, Durations, Encoder, LogLimit, ShardedCounter};

/// The sampling interval: one in this many hot calls is timed.
const SAMPLED: u32 = 16;

/// The names of the status codes in gRPC's specification, indexed by number.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const OK: usize = Code::Ok as usize;

/// The index of health and reflection. [`UNKNOWN`] is the index of all other paths outside the
/// contract.
const INFRASTRUCTURE: usize = METHODS.len();
const UNKNOWN: usize = METHODS.len() + 1;
const NAMES: usize = METHODS.len() + 2;

/// The highest number of a decision plus one.
const REASONS: usize = NO_RULE + 1;

/// The metrics of all calls since the start.
pub struct Calls {
    /// The number of decided hot calls, by reason.
    decisions: [ShardedCounter<REASONS>; HOT],
    /// The number of decided items of BatchValidates, by reason.
    item_decisions: ShardedCounter<REASONS>,
    /// The number of items of BatchValidates that could not be decided, by code.
    item_errors: ShardedCounter<{ CODES.len() }>,
    /// The number of calls by method and code, without decided hot calls.
    codes: [ShardedCounter<{ CODES.len() }>; NAMES],
    took: [Durations; NAMES],
    /// Limits the log lines about denied calls.
    refused: Arc<LogLimit>,
}

impl Default for Calls {
    fn default() -> Self {
        let hot = |name| match name {
            0..HOT => Durations::hot(),
            _ => Durations::cold(),
        };
        Self {
            decisions: array::from_fn(|_| ShardedCounter::default()),
            item_decisions: ShardedCounter::default(),
            item_errors: ShardedCounter::default(),
            codes: array::from_fn(|_| ShardedCounter::default()),
            took: array::from_fn(hot),
            refused: LogLimit::new(|suppressed| {
                info!(suppressed, "more calls were refused within 10 s");
            }),
        }
    }
}

impl Calls {
    /// Counts the decision of a hot call, if there is one, and records the duration if it was
    /// measured.
    pub(in crate::api) fn count<C: HotCall>(
        &self,
        answer: &Result<C::Answer, Status>,
        began: Option<Instant>,
    ) {
        if let Some(began) = began {
            self.took[C::METHOD].note(began.elapsed());
        }
        if let Ok(answer) = answer {
            self.decisions[C::METHOD].add(answer.decision(), 1);
        }
    }

    /// Counts an item of a BatchValidate: its decision, or the code of its error.
    pub(in crate::api) fn count_item(&self, item: Result<Reason, Code>) {
        match item {
            Ok(reason) => self.item_decisions.add(reason as usize, 1),
            Err(code) => self.item_errors.add(code as usize, 1),
        }
    }

    /// Counts a hot call that ended with an error, if these headers contain one.
    pub(in crate::api) fn count_undecided<C: HotCall>(
        &self,
        headers: &HeaderMap,
        peer: &Peer,
        asker: Option<&Asker>,
    ) {
        if let Some(code) = code(headers) {
            if let Some(Asker::OfSome(caller)) = asker {
                peer.identified(&*caller.actor);
            }
            self.codes[C::METHOD].add(code as usize, 1);
            self.log_refusal(C::METHOD, code, headers, peer);
        }
    }

    /// Logs a call with an unidentified caller or without the permission, at a bounded rate.
    fn log_refusal(&self, name: usize, code: Code, headers: &HeaderMap, peer: &Peer) {
        let refused = matches!(code, Code::Unauthenticated | Code::PermissionDenied);
        if !refused || !self.refused.admit() {
            return;
        }
        let status = Status::from_header_map(headers);
        let reason = status.and_then(|status| status.get_details_error_info());
        info!(
            method = METHODS.get(name).copied(),
            code = CODES[code as usize],
            reason = reason.map(|info| info.reason),
            caller = peer.caller(),
            peer = peer.ip().map(tracing::field::display),
            "call refused"
        );
    }
}

impl Collect for Calls {
    fn collect(&self, page: &mut Encoder<'_>) -> fmt::Result {
        let names = METHODS.into_iter().chain(["grpc.*", "unknown"]);
        let decisions = self.decisions.each_ref().map(ShardedCounter::read);
        let mut counts = Vec::new();
        for (index, (name, tally)) in names.clone().zip(&self.codes).enumerate() {
            let of_method = decisions.get(index).into_iter().flatten();
            let decided_calls: u64 = of_method.sum();
            for (code, count) in tally.read().into_iter().enumerate() {
                let ok = code == OK;
                let decided = if ok { decided_calls } else { 0 };
                // An error that never occurred is omitted, because hundreds are possible.
                if ok || count > 0 {
                    let labels = [("method", name), ("code", CODES[code])];
                    counts.push((labels, count + decided));
                }
            }
        }
        page.counters("gatekey_calls_total", "Calls that have ended", counts)?;
        let items = self.item_errors.read().into_iter().enumerate();
        let items = items.filter(|(code, count)| *code != OK && *count > 0);
        page.counters(
            "gatekey_batch_item_errors_total",
            "Items of BatchValidate that could not be decided, by status code",
            items.map(|(code, count)| ([("code", CODES[code])], count)),
        )?;
        let items = self.item_decisions.read();
        page.counters(
            "gatekey_decisions_total",
            "Decisions of Validate, of items of BatchValidate and of Check, by reason",
            (1..REASONS).map(|number| {
                let hot: u64 = decisions.iter().map(|counts| counts[number]).sum();
                ([("reason", reason_name(number))], hot + items[number])
            }),
        )?;
        let took = names.zip(&self.took);
        page.durations(
            "gatekey_call_duration_seconds",
            "How long calls took; of Validates and Checks one in 16 is timed",
            took.map(|(name, took)| ([("method", name)], took)),
        )
    }
}

/// Returns the label of a decision.
fn reason_name(number: usize) -> &'static str {
    let reason = i32::try_from(number).map(Reason::try_from);
    match reason {
        Ok(Ok(reason)) => response::reason_name(reason),
        _ => ext_authz::NO_RULE_NAME,
    }
}

/// Returns the current time if this thread's next hot call is timed. The first one is.
pub(in crate::api) fn begin_sampled() -> Option<Instant> {
    thread_local! {
        static NEXT: Cell<u32> = const { Cell::new(0) };
    }
    let number = NEXT.get();
    NEXT.set(number.wrapping_add(1));
    number.is_multiple_of(SAMPLED).then(Instant::now)
}

/// Returns the status code, if these are the last headers of a response.
fn code(headers: &HeaderMap) -> Option<Code> {
    let status = headers.get(Status::GRPC_STATUS)?;
    Some(Code::from_bytes(status.as_bytes()))
}

/// A call in progress. It is counted on drop: as cancelled, unless it ended before.
pub(in crate::api) struct Call {
    api: Arc<Api>,
    name: usize,
    began: Instant,
    code: Code,
    peer: Arc<Peer>,
}

impl Call {
    /// Begins a call that is not hot.
    pub(in crate::api) fn begin(api: &Arc<Api>, path: &str, peer: &Arc<Peer>) -> Self {
        let other = if path.starts_with("/grpc.") {
            INFRASTRUCTURE
        } else {
            UNKNOWN
        };
        Self {
            api: Arc::clone(api),
            name: method::find(path).unwrap_or(other),
            began: Instant::now(),
            code: Code::Cancelled,
            peer: Arc::clone(peer),
        }
    }

    /// Returns the start time of the call.
    pub(in crate::api) fn began(&self) -> Instant {
        self.began
    }

    /// Wraps the response so that the call ends with its body.
    pub(in crate::api) fn ends_with(
        mut self,
        answer: http::Response<Body>,
    ) -> http::Response<Reply> {
        self.look(answer.headers());
        answer.map(|body| {
            let call = Some(self);
            Reply::tonic(Body::new(Counted { inner: body, call }))
        })
    }

    /// Records the status code, if these are the last headers of a response.
    fn look(&mut self, headers: &HeaderMap) {
        if let Some(code) = code(headers) {
            self.code = code;
            let calls = &self.api.calls;
            calls.log_refusal(self.name, code, headers, &self.peer);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let calls = &self.api.calls;
        calls.codes[self.name].add(self.code as usize, 1);
        calls.took[self.name].note(self.began.elapsed());
    }
}

pin_project! {
    /// A response body that ends its call when it ends.
    struct Counted<B> {
        #[pin]
        inner: B,
        call: Option<Call>,
    }
}

impl<B: HttpBody> HttpBody for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        let last = match &frame {
            Some(Ok(frame)) => frame.trailers_ref(),
            Some(Err(_)) | None => None,
        };
        if let (Some(call), Some(last)) = (this.call.as_mut(), last) {
            call.look(last);
        }
        if last.is_some() || !matches!(frame, Some(Ok(_))) {
            *this.call = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
