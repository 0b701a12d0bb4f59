//! Adds details to statuses that no handler created, so that every error has them.

use tonic::{Status, codegen::http::Response};

use super::status::completed;

/// Adds details to an error response that has none. Any other response stays unchanged.
pub(super) fn complete<B>(mut response: Response<B>) -> Response<B> {
    let status = Status::from_header_map(response.headers());
    if let Some(status) = status.as_ref().and_then(completed) {
        // This fails only if the message is not a valid header; the message then stays unchanged.
        let _ = status.add_header(response.headers_mut());
    }
    response
}
