//! A server span for each call while tracing is on, by OpenTelemetry's conventions for gRPC
//! (<https://opentelemetry.io/docs/specs/semconv/rpc/grpc/>). While tracing is off, the cost is one
//! branch.
//!
//! The spans use OpenTelemetry directly instead of `tracing`, so that the sampler decides before
//! any cost arises: a call that is not sampled has no span and allocates no memory for its trace. A
//! span inside a call is created only if the call has one ([`metrics::child`]).
//!
//! [`metrics::child`]: crate::metrics::child
//!
//! This module reads only `traceparent` and `tracestate` of a call's metadata, because the rest may
//! contain secrets.

use std::{
    pin::Pin,
    sync::Arc,
    task::{self, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use opentelemetry::{
    Context, ContextGuard, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{Sampler, SamplingDecision, SdkTracer, ShouldSample as _},
};
use pin_project_lite::pin_project;
use tonic::{
    Code,
    codegen::http::{HeaderMap, Request, Response},
};
use tower::{Layer, Service};

use crate::api::method::{self, METHODS};

/// Creates the spans of calls.
#[derive(Clone, Debug)]
pub struct Tracing {
    pub tracer: SdkTracer,
    /// The tracer's sampler, kept here so that it can decide before a span exists.
    pub sampler: Sampler,
}

/// A middleware layer that adds a span to each call.
#[derive(Clone, Debug)]
pub struct TraceLayer {
    tracing: Option<Arc<Tracing>>,
}

impl TraceLayer {
    /// Creates the layer. Without `tracing` it creates no spans.
    #[must_use]
    pub fn new(tracing: Option<Tracing>) -> Self {
        let tracing = tracing.map(Arc::new);
        Self { tracing }
    }
}

impl<S> Layer<S> for TraceLayer {
    type Service = Trace<S>;

    fn layer(&self, inner: S) -> Trace<S> {
        let tracing = self.tracing.clone();
        Trace { inner, tracing }
    }
}

/// A service whose calls have spans, created by [`TraceLayer`].
#[derive(Clone, Debug)]
pub struct Trace<S> {
    inner: S,
    tracing: Option<Arc<Tracing>>,
}

impl<S, B, R> Service<Request<B>> for Trace<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<Traced<R>>;
    type Error = S::Error;
    type Future = Traced<S::Future>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let tracing = self.tracing.as_deref();
        let span = tracing.and_then(|it| open(it, request.uri().path(), request.headers()));
        let _inside = enter(span.as_ref());
        let inner = self.inner.call(request);
        Traced { inner, span }
    }
}

pin_project! {
    /// The future of a response, and then its body. If it is dropped early, such as when the client
    /// disconnects, the span ends without a status.
    #[derive(Debug)]
    pub struct Traced<T> {
        #[pin]
        inner: T,
        span: Option<Context>,
    }
}

impl<F, R, E> Future for Traced<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<Traced<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let _inside = enter(this.span.as_ref());
        let response = ready!(this.inner.poll(cx))?;
        // A response without messages has its status in the headers, any other in the trailers.
        if response.headers().contains_key(tonic::Status::GRPC_STATUS) {
            close(this.span, Some(response.headers()));
        }
        let span = this.span.take();
        Poll::Ready(Ok(response.map(|inner| Traced { inner, span })))
    }
}

impl<B: Body> Body for Traced<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let _inside = enter(this.span.as_ref());
        let frame = ready!(this.inner.poll_frame(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_data() => {}
            Some(Ok(frame)) => close(this.span, frame.trailers_ref()),
            Some(Err(_)) | None => close(this.span, None),
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

/// Makes the span of a call the parent of spans that start while the guard is alive.
fn enter(span: Option<&Context>) -> Option<ContextGuard> {
    span.map(|it| it.clone().attach())
}

/// Opens the span of a call. Returns `None` for health and reflection, and if it is not sampled.
fn open(tracing: &Tracing, path: &str, headers: &HeaderMap) -> Option<Context> {
    let path = path.trim_start_matches('/');
    if path.starts_with("grpc.") {
        return None;
    }
    let mut parent = Context::new();
    if let Some(traceparent) = Traceparent::of(headers) {
        // Decides as the tracer does, but only from the header, because the parent's context
        // allocates memory.
        if !traceparent.is_sampled(&tracing.sampler) {
            return None;
        }
        parent = TraceContextPropagator::new().extract_with_context(&parent, &Carrier(headers));
    }
    let name = method::find(path).map(|which| METHODS[which]);
    let tracer = &tracing.tracer;
    let builder = tracer.span_builder(name.unwrap_or("unknown"));
    let mut span = tracer.build_with_context(builder.with_kind(SpanKind::Server), &parent);
    if !span.is_recording() {
        return None;
    }
    span.set_attribute(KeyValue::new("rpc.system", "grpc"));
    if let Some((service, method)) = name.and_then(|it| it.split_once('/')) {
        span.set_attribute(KeyValue::new("rpc.service", service));
        span.set_attribute(KeyValue::new("rpc.method", method));
    }
    Some(parent.with_span(span))
}

/// Ends the span of a call with the status in its last headers, if any.
fn close(span: &mut Option<Context>, last: Option<&HeaderMap>) {
    let Some(context) = span.take() else { return };
    let span = context.span();
    if let Some(status) = last.and_then(|it| it.get(tonic::Status::GRPC_STATUS)) {
        let code = Code::from_bytes(status.as_bytes());
        span.set_attribute(KeyValue::new(
            "rpc.grpc.status_code",
            i64::from(code as i32),
        ));
        if is_failure(code) {
            span.set_status(Status::error(""));
        }
    }
    span.end();
}

/// Returns true if the status is a server error by the same conventions.
fn is_failure(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// Returns the trace ID of a call: 32 lowercase hex digits from its `traceparent`, even if tracing
/// is off. Returns `None` if the header is missing or malformed.
#[must_use]
pub fn trace_id(headers: &HeaderMap) -> Option<String> {
    Traceparent::of(headers).map(|it| it.trace.to_owned())
}

/// A well-formed `traceparent` (<https://www.w3.org/TR/trace-context/#traceparent-header>).
struct Traceparent<'a> {
    trace: &'a str,
    sampled: bool,
}

impl<'a> Traceparent<'a> {
    fn of(headers: &'a HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return None;
        };
        let mut parts = value.to_str().ok()?.split('-');
        let mut hex = |digits| {
            parts.next().filter(|it| {
                it.len() == digits && it.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'))
            })
        };
        let (version, trace, parent, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        let zero = |id: &str| id.bytes().all(|it| it == b'0');
        // Version 00 ends here; later versions may add parts. Version ff is invalid.
        let ends = version != "00" || parts.next().is_none();
        let well_formed = ends && version != "ff" && !zero(trace) && !zero(parent);
        let flags = u8::from_str_radix(flags, 16).ok()?;
        let sampled = flags & 1 == 1;
        well_formed.then_some(Self { trace, sampled })
    }

    /// Returns true if the call is sampled.
    fn is_sampled(&self, sampler: &Sampler) -> bool {
        if let Sampler::ParentBased(_) = sampler {
            return self.sampled;
        }
        let trace = TraceId::from_hex(self.trace).unwrap_or(TraceId::INVALID);
        // The other samplers use only the trace ID.
        let sampling = sampler.should_sample(None, trace, "", &SpanKind::Server, &[], &[]);
        sampling.decision != SamplingDecision::Drop
    }
}

/// The two headers that propagate a trace between processes.
struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tonic::codegen::http::HeaderValue;

    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn headers(traceparents: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in traceparents {
            headers.append("traceparent", HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_well_formed_traceparent_names_its_trace() {
        for good in [
            format!("00-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{TRACE}-00f067aa0ba902b7-00"),
            format!("01-{TRACE}-00f067aa0ba902b7-01-more"),
        ] {
            assert_eq!(
                trace_id(&headers(&[&good])).as_deref(),
                Some(TRACE),
                "{good}"
            );
        }
    }

    #[test]
    fn a_malformed_traceparent_names_none() {
        for bad in [
            String::new(),
            TRACE.to_owned(),
            format!("00-{TRACE}-00f067aa0ba902b7"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            format!("00-{TRACE}-00f067aa0ba902b7-01-"),
            format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            format!("0-{TRACE}-00f067aa0ba902b7-01"),
            format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            format!("00-{}-00f067aa0ba902b7-01", &TRACE[1..]),
            format!("00-{TRACE}-00f067aa0ba902b7-1"),
            format!("00-{TRACE}-00f067aa0ba902bg-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!(" 00-{TRACE}-00f067aa0ba902b7-01"),
        ] {
            assert_eq!(trace_id(&headers(&[&bad])), None, "{bad}");
        }
    }

    /// Returns whether a call in a trace with these flags, or in none, has a span, and the number
    /// of allocations for this decision.
    fn opened(sampler: &Sampler, flags: Option<&str>) -> (bool, u64) {
        let provider = SdkTracerProvider::builder().with_sampler(sampler.clone());
        let tracing = Tracing {
            tracer: provider.build().tracer("gatekey"),
            sampler: sampler.clone(),
        };
        let parent = flags.map(|flags| format!("00-{TRACE}-00f067aa0ba902b7-{flags}"));
        let headers = headers(&parent.as_deref().into_iter().collect::<Vec<_>>());
        let open = || open(&tracing, "/gatekey.v1.KeyService/Validate", &headers).is_some();
        // The first random number of a thread allocates memory once.
        let opened = open();
        let measured = allocation_counter::measure(|| {
            open();
        });
        (opened, measured.count_total)
    }

    #[test]
    fn a_call_that_is_not_sampled_takes_no_memory_for_its_trace() {
        let parent_based = |root| Sampler::ParentBased(Box::new(root));
        let rare = Sampler::TraceIdRatioBased(1e-9);
        for (sampler, flags) in [
            (parent_based(Sampler::AlwaysOff), None),
            (parent_based(Sampler::AlwaysOn), Some("00")),
            (parent_based(rare.clone()), None),
            (Sampler::AlwaysOff, None),
            (Sampler::AlwaysOff, Some("01")),
            (rare.clone(), None),
            (rare, Some("01")),
        ] {
            assert_eq!(opened(&sampler, flags), (false, 0), "{sampler:?} {flags:?}");
        }
    }

    #[test]
    fn a_call_that_is_sampled_is_seen_to_take_memory() {
        let parent_based = Sampler::ParentBased(Box::new(Sampler::AlwaysOff));
        for (sampler, flags) in [
            (parent_based, Some("01")),
            (Sampler::AlwaysOn, None),
            (Sampler::AlwaysOn, Some("00")),
            (Sampler::TraceIdRatioBased(1.0), Some("00")),
        ] {
            let (opened, count) = opened(&sampler, flags);
            assert!(opened && count > 0, "{sampler:?} {flags:?}: {count}");
        }
    }

    #[test]
    fn two_traceparents_name_none() {
        let good = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert_eq!(trace_id(&headers(&[&good, &good])), None);
        assert_eq!(trace_id(&headers(&[])), None);
    }
}
