//! Spans inside a call: children of the call's own span, where that is sampled.
//!
//! The parent has decided, so that what is not sampled pays for one look at the current context.

use opentelemetry::{
    Context, global,
    trace::{FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _},
};

/// Carries out a work in a span of its own if the current one is sampled. The error's kind is not
/// told, for its text may hold what a trace must not.
///
/// # Errors
/// Those of the work.
pub async fn child<T, E>(
    name: &'static str,
    kind: SpanKind,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let parent = Context::current();
    if !parent.span().span_context().is_sampled() {
        return work.await;
    }
    let tracer = global::tracer("gatekey");
    let builder = tracer.span_builder(name).with_kind(kind);
    let context = parent.with_span(tracer.build_with_context(builder, &parent));
    let done = work.with_context(context.clone()).await;
    if done.is_err() {
        context.span().set_status(Status::error(""));
    }
    context.span().end();
    done
}
