//! `Debug` for the messages that contain the headers of a client. Shows names, but no values.

use std::fmt;

use super::proto::{Entry, HeaderValue, attribute_context::HttpRequest};

const REDACTED: &str = "[redacted]";

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("value", &REDACTED)
            .finish()
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeaderValue")
            .field("key", &self.key)
            .field("value", &REDACTED)
            .field("raw_value", &REDACTED)
            .finish()
    }
}

impl fmt::Debug for HttpRequest {
    /// Leaves the path out, because its query may contain a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpRequest")
            .field("method", &self.method)
            .field("headers", &self.headers)
            .field("path", &REDACTED)
            .field("host", &self.host)
            .field("header_map", &self.header_map)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::HeaderMap;
    use super::*;

    #[test]
    fn no_message_tells_what_a_client_sent() {
        let secret = b"s3cr3t";
        let shown = format!(
            "{:?}",
            HttpRequest {
                path: [b"/?api_key=", &secret[..]].concat().into(),
                headers: vec![Entry {
                    key: "authorization".into(),
                    value: secret.to_vec().into(),
                }],
                header_map: Some(HeaderMap {
                    headers: vec![HeaderValue {
                        key: "authorization".into(),
                        value: secret.to_vec().into(),
                        raw_value: secret.to_vec().into(),
                    }],
                }),
                ..HttpRequest::default()
            }
        );
        assert!(!shown.contains("s3cr3t"), "{shown}");
        assert_eq!(shown.matches("authorization").count(), 2, "{shown}");
    }
}
