//! The BatchValidate method: many questions of one caller in one call.
//!
//! Each item has a result of its own. The response is encoded here, directly from the cache
//! entries, and its size is bounded.

use prost::{
    Message as _,
    bytes::{Buf as _, BufMut as _, Bytes},
    encoding::{DecodeContext, decode_key, skip_field},
};
use tonic::{
    Code, Status,
    codec::{self, DecodeBuf, EncodeBuf},
};

use super::{Parsed, parse};
use crate::api::wire::write_head;
use crate::api::{
    Api, LIST_BYTES_MAX,
    caller::Asker,
    convert::{request::Fields, status, status::Invalid},
    middleware::budget::{Charge, Class},
    proto::BatchValidateRequest,
    validate::encode::Answer,
};
use crate::service::validator::{Batch, Decision};

/// Maximum number of items.
const ITEMS_MAX: usize = 256;
/// Maximum size of the request in bytes. An item with a key, some scopes and an address takes about
/// 300.
pub(in crate::api) const REQUEST_MAX: usize = 256 * 1024;
/// The name and number of the field that contains the items.
const ITEMS: (&str, u32) = ("requests", 1);

/// Field numbers of `BatchValidateResponse` and `BatchValidateResult`.
mod field {
    pub(super) const RESULTS: u8 = 1;
    pub(super) const RESPONSE: u8 = 1;
    pub(super) const ERROR: u8 = 2;
}

impl Api {
    /// Handles a BatchValidate request from `asker`. Returns the encoded response.
    ///
    /// # Errors
    /// If the number of items is not within the bounds, or the memory budget does not suffice.
    pub(in crate::api) async fn answer_batch(
        &self,
        asker: &Asker,
        request: BatchValidateRequest,
    ) -> Result<Vec<u8>, Status> {
        check_count(request.requests.len())?;
        let parsed: Vec<_> = request
            .requests
            .into_iter()
            .map(|request| parse(asker, request))
            .collect();
        let decisions = self.decide_all(asker, &parsed).await;
        let mut results = Results::default();
        for (parsed, decided) in parsed.iter().zip(decisions) {
            let answer = decided.clone().map(Answer::new);
            let reason = answer.as_ref().map(Answer::reason).ok();
            let written = results.write(answer)?;
            // An item that does not fit into the response counts as not decided.
            self.calls
                .count_item(written.map(|()| reason.unwrap_or_default()));
            if let (Ok(()), Ok(decision), Ok(Parsed::Question(question))) =
                (written, &decided, parsed)
            {
                self.note_use(decision, question.client_ip);
            }
        }
        Ok(results.data)
    }

    /// Decides about all questions, and returns a decision or an error for each item.
    async fn decide_all(
        &self,
        asker: &Asker,
        parsed: &[Result<Parsed, Status>],
    ) -> Vec<Result<Decision, Status>> {
        let questions = parsed.iter().filter_map(|parsed| match parsed {
            Ok(Parsed::Question(question)) => Some(question),
            Ok(Parsed::Decided(_)) | Err(_) => None,
        });
        let questions: Vec<_> = questions
            .map(|question| (question, question.view(asker)))
            .collect();
        let requests: Vec<_> = questions
            .iter()
            .map(|(question, in_view)| question.request(in_view))
            .collect();
        let Batch { decisions, failed } = self.validator.validate_batch(&requests).await;
        let failed = failed.map(Status::from);
        let mut decisions = decisions.into_iter();
        parsed
            .iter()
            .map(|parsed| match parsed {
                Ok(Parsed::Question(_)) => match decisions.next().flatten() {
                    Some(decided) => decided.map_err(Status::from),
                    None => Err(failed.clone().unwrap_or_else(status::failed)),
                },
                Ok(Parsed::Decided(decision)) => Ok(decision.clone()),
                Err(status) => Err(status.clone()),
            })
            .collect()
    }
}

/// Checks the number of items.
fn check_count(count: usize) -> Result<(), Invalid> {
    let mut fields = Fields::default();
    if !(1..=ITEMS_MAX).contains(&count) {
        fields.note(ITEMS.0, format!("must have 1-{ITEMS_MAX} items"));
    }
    fields.check()
}

/// The encoded results.
struct Results {
    data: Vec<u8>,
    item: Vec<u8>,
    charge: Charge,
    full: bool,
}

impl Default for Results {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            item: Vec::new(),
            charge: Charge::none(Class::Validator),
            full: false,
        }
    }
}

impl Results {
    /// Appends a result. Once the results are too large, an error takes the place of each further
    /// one. Returns the code of an appended error.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED when the memory budget does not suffice.
    fn write(&mut self, result: Result<Answer, Status>) -> Result<Result<(), Code>, Status> {
        self.item.clear();
        let (mut field, mut written) = (field::RESPONSE, Ok(()));
        match result {
            Ok(answer) => answer.write(&mut self.item),
            Err(status) => {
                (field, written) = (field::ERROR, Err(status.code()));
                self.item.extend_from_slice(status.details());
            }
        }
        self.full |= self.data.len() + self.item.len() > LIST_BYTES_MAX;
        if self.full {
            let status = status::response_too_large();
            (field, written) = (field::ERROR, Err(status.code()));
            self.item.clear();
            self.item.extend_from_slice(status.details());
        }
        let before = self.data.capacity();
        let length = self.item.len() as u64;
        let head = 1 + prost::encoding::encoded_len_varint(length) as u64;
        write_head(&mut self.data, field::RESULTS, head + length);
        write_head(&mut self.data, field, length);
        self.data.extend_from_slice(&self.item);
        self.charge.grow_by(self.data.capacity() - before)?;
        Ok(written)
    }
}

/// Decodes `BatchValidateRequest` and passes on an encoded response.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::api) struct Codec;

impl codec::Codec for Codec {
    type Encode = Vec<u8>;
    type Decode = BatchValidateRequest;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl codec::Encoder for Codec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, response: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&response);
        Ok(())
    }
}

impl codec::Decoder for Codec {
    type Item = BatchValidateRequest;
    type Error = Status;

    /// Counts the items before it decodes them, because an empty item takes two bytes here and a
    /// hundred times as much when it is decoded.
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        check_count(count(message.clone()).max(1))?;
        // prost's error is dropped because it may reveal the content of a field.
        let request = BatchValidateRequest::decode(message);
        request.map(Some).map_err(|_| status::unreadable())
    }
}

/// Counts the items of an encoded request, up to the first field that cannot be read.
fn count(mut message: Bytes) -> usize {
    let mut items = 0;
    while message.has_remaining() {
        let Ok((number, wire_type)) = decode_key(&mut message) else {
            break;
        };
        items += usize::from(number == ITEMS.1);
        if skip_field(wire_type, number, &mut message, DecodeContext::default()).is_err() {
            break;
        }
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::proto::ValidateRequest;

    #[test]
    fn items_are_counted_as_they_are_decoded() {
        for items in [0, 1, 256, 257] {
            let request = BatchValidateRequest {
                requests: vec![ValidateRequest::default(); items],
            };
            assert_eq!(count(request.encode_to_vec().into()), items);
        }
    }
}
