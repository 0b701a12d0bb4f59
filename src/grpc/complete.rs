//! Completes the statuses that never came from a handler, so that every error has its details.

use tonic::{Status, codegen::http::Response};

use super::status::completed;

/// Completes a response that is an error without details; any other stays as it is.
pub(super) fn complete<B>(mut response: Response<B>) -> Response<B> {
    let status = Status::from_header_map(response.headers());
    if let Some(status) = status.as_ref().and_then(completed) {
        // It fails only for a message that is no header, which then stays as it was.
        let _ = status.add_header(response.headers_mut());
    }
    response
}
