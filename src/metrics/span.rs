//! Child spans of a request's span, if that span is sampled.
//!
//! The parent carries the sampling decision, so an unsampled request costs one lookup of the
//! current context.

use opentelemetry::{
    Context, global,
    trace::{FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _},
};

/// Runs `work` in a child span if the current span is sampled. A failure sets the span's status
/// without a description, because the error's text may contain data that must not be in a trace.
///
/// # Errors
/// Returns the error of `work`.
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
