//! Hot calls: Validate and Envoy's Check, which decide about a request of another service.
//!
//! They run on the thread of their connection, without the router.

use std::marker::PhantomData;

use prost::Message;
use tonic::{
    Status,
    codec::{self, EncodeBuf},
};

use super::{
    Api,
    caller::Asker,
    convert::status,
    ext_authz::{Verdict, proto::CheckRequest},
    method,
    proto::ValidateRequest,
    validate::{codec::Decoder, decode::HEAD, encode::Answer},
};
use prost::bytes::BufMut as _;

/// Initial capacity of a response buffer in bytes, more than a usual Validate response needs.
const ANSWER_USUAL: usize = 320;

/// The response to a hot call.
pub(super) trait Encode: Send + 'static {
    /// Returns the number of the decision: a [`Reason`], or [`NO_RULE`].
    ///
    /// [`Reason`]: super::proto::Reason
    /// [`NO_RULE`]: super::ext_authz::NO_RULE
    fn decision(&self) -> usize;

    /// Encodes the response behind [`HEAD`] bytes for the prefix of the message.
    fn framed(self) -> Vec<u8>;
}

/// A method whose calls are hot.
pub(super) trait HotCall: Send + Sync + 'static {
    /// The index of the method in [`method::METHODS`].
    const METHOD: usize;
    type Request: Message + Default + 'static;
    type Answer: Encode;

    /// Handles a call from `asker`.
    ///
    /// # Errors
    /// If the caller is not permitted to validate, the request is invalid, or no decision was
    /// possible.
    fn answer(
        api: &Api,
        asker: &Asker,
        request: Self::Request,
    ) -> impl Future<Output = Result<Self::Answer, Status>> + Send;
}

/// `gatekey.v1.KeyService/Validate`.
pub(super) struct Validate;

impl HotCall for Validate {
    const METHOD: usize = method::VALIDATE;
    type Request = ValidateRequest;
    type Answer = Answer;

    async fn answer(api: &Api, asker: &Asker, request: ValidateRequest) -> Result<Answer, Status> {
        api.answer_validate(asker, request).await
    }
}

impl Encode for Answer {
    fn decision(&self) -> usize {
        self.reason() as usize
    }

    fn framed(self) -> Vec<u8> {
        let mut data = Vec::with_capacity(ANSWER_USUAL);
        data.put_bytes(0, HEAD);
        self.write(&mut data);
        data
    }
}

/// `envoy.service.auth.v3.Authorization/Check`.
pub(super) struct Check;

impl HotCall for Check {
    const METHOD: usize = method::CHECK;
    type Request = CheckRequest;
    type Answer = Verdict;

    async fn answer(api: &Api, asker: &Asker, request: CheckRequest) -> Result<Verdict, Status> {
        api.answer_check(asker, &request).await
    }
}

/// The codec of a hot call whose request has an unusual form.
pub(super) struct Codec<C>(PhantomData<C>);

impl<C> Default for Codec<C> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<C: HotCall> codec::Codec for Codec<C> {
    type Encode = C::Answer;
    type Decode = C::Request;
    type Encoder = Self;
    type Decoder = Decoder<C::Request>;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder::default()
    }
}

impl<C: HotCall> codec::Encoder for Codec<C> {
    type Item = C::Answer;
    type Error = Status;

    fn encode(&mut self, answer: C::Answer, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let framed = answer.framed();
        let message = framed.get(HEAD..).ok_or_else(status::failed)?;
        to.put_slice(message);
        Ok(())
    }
}
