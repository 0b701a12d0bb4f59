//! The attributes of an HTTP request that Envoy asks about.

use std::borrow::Cow;

use super::proto::{CheckRequest, Entry, attribute_context::HttpRequest};
use crate::api::convert::{request::Fields, status::Invalid};

/// The attributes of one request.
pub(super) struct Attributes<'a> {
    request: &'a CheckRequest,
    http: &'a HttpRequest,
}

impl<'a> Attributes<'a> {
    /// Returns the attributes of an HTTP request.
    ///
    /// # Errors
    /// If the Check is not about an HTTP request, as with Envoy's network filter.
    pub(super) fn of(request: &'a CheckRequest) -> Result<Self, Invalid> {
        let attributes = request.attributes.as_ref();
        let of_request = attributes.and_then(|it| it.request.as_ref());
        if let Some(http) = of_request.and_then(|it| it.http.as_ref()) {
            return Ok(Self { request, http });
        }
        let mut fields = Fields::default();
        fields.note("attributes.request.http", "must be set");
        fields.check()?;
        Err(Invalid(Vec::new()))
    }

    /// Returns the entries that the configuration of the route sets.
    pub(super) fn extensions(&self) -> &'a [Entry] {
        let attributes = self.request.attributes.as_ref();
        attributes.map_or(&[], |it| &it.context_extensions)
    }

    /// Returns the address of the client as Envoy determined it, or an empty text.
    pub(super) fn source(&self) -> Cow<'a, str> {
        let attributes = self.request.attributes.as_ref();
        let source = attributes.and_then(|it| it.source.as_ref()?.address.as_ref());
        let socket = source.and_then(|address| address.socket_address.as_ref());
        String::from_utf8_lossy(socket.map_or(&[], |socket| &socket.address))
    }

    pub(super) fn host(&self) -> &'a [u8] {
        &self.http.host
    }

    pub(super) fn method(&self) -> &'a [u8] {
        &self.http.method
    }

    /// Returns the path, without the query.
    pub(super) fn path(&self) -> &'a [u8] {
        let end = self.http.path.iter().position(|byte| *byte == b'?');
        &self.http.path[..end.unwrap_or(self.http.path.len())]
    }

    /// Returns the query, without the question mark.
    pub(super) fn query(&self) -> &'a [u8] {
        let start = self.http.path.iter().position(|byte| *byte == b'?');
        start.map_or(&[], |start| &self.http.path[start + 1..])
    }

    /// Returns the names and values of all headers.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let joined = self.http.headers.iter();
        let joined = joined.map(|entry| (&*entry.key, &*entry.value));
        let raw = self.http.header_map.iter().flat_map(|map| &map.headers);
        joined.chain(raw.map(|header| {
            let raw = if header.value.is_empty() {
                &header.raw_value
            } else {
                &header.value
            };
            (&*header.key, &**raw)
        }))
    }

    /// Returns whether the request is a gRPC call, whose denial is a gRPC status.
    pub(super) fn is_grpc(&self) -> bool {
        self.headers().any(|(name, value)| {
            let subtype = value.strip_prefix(b"application/grpc");
            name == b"content-type" && matches!(subtype, Some([] | [b'+' | b';', ..]))
        })
    }
}
