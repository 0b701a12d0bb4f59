//! Serves BatchValidate on the connection's own thread, as Validate.

use std::sync::Arc;

use http_body::Body as HttpBody;
use prost::bytes::Bytes;
use tokio::time::Instant;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, http},
    server::{Grpc, UnaryService},
};

use super::ConnectionService;
use crate::api::{
    Api, Peer,
    caller::Asker,
    middleware::{budget::Class, intake::Intake, outgoing::Outgoing},
    proto::BatchValidateRequest,
    validate::batch::{Codec, REQUEST_MAX},
};

impl ConnectionService {
    /// Handles a BatchValidate that began at this time.
    pub(super) async fn validate_batch<B>(
        self,
        request: http::Request<B>,
        began: Instant,
        peer: Arc<Peer>,
    ) -> Result<http::Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes> + Unpin + Send + 'static,
    {
        let api = &self.shared.api;
        let (parts, body) = request.into_parts();
        let identifying = api.identify_asker(&parts.headers, &peer);
        let asker = self.shared.identified(identifying).await?;
        if let Asker::OfSome(caller) = &asker {
            peer.identified(&*caller.actor);
        }
        let intake = Intake {
            class: Class::Validator,
            max: REQUEST_MAX,
            began,
            stop: &api.stop,
        };
        let (body, _charge) = intake.whole(body).await?;
        let mut grpc = Grpc::new(Codec).apply_max_message_size_config(Some(REQUEST_MAX), None);
        let batch = BatchValidate {
            api: Arc::clone(api),
            asker,
        };
        let request = http::Request::from_parts(parts, body);
        let answer = grpc.unary(batch, request).await;
        Ok(answer.map(|body| Body::new(Outgoing::new(body, Class::Validator, ()))))
    }
}

/// The handler of one call.
struct BatchValidate {
    api: Arc<Api>,
    asker: Asker,
}

impl UnaryService<BatchValidateRequest> for BatchValidate {
    type Response = Vec<u8>;
    type Future = BoxFuture<Response<Vec<u8>>, Status>;

    fn call(&mut self, request: Request<BatchValidateRequest>) -> Self::Future {
        let (api, asker) = (Arc::clone(&self.api), self.asker.clone());
        Box::pin(async move {
            let answer = api.answer_batch(&asker, request.into_inner()).await;
            answer.map(Response::new)
        })
    }
}
