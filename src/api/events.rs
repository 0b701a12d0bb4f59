//! The handlers of EventService.

use std::pin::Pin;

use tokio_stream::{Stream, StreamExt as _, once, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

use super::{
    Api,
    convert::request::Fields,
    convert::response,
    convert::status,
    proto::{
        self, ListEventsRequest, ListEventsResponse, WatchEventsRequest, WatchEventsResponse,
        WatchStarted, event_service_server::EventService, watch_events_response::Message,
    },
};
use crate::{
    domain::{
        caller::{Action, TenantSet},
        event::EventKind,
    },
    service::{error::in_view, event_log::Watch},
    store::EventQuery,
};

#[tonic::async_trait]
impl EventService for Api {
    async fn list_events(
        &self,
        request: Request<ListEventsRequest>,
    ) -> Result<Response<ListEventsResponse>, Status> {
        let caller = self.identify(&request, Action::EventsRead).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        let key = (!request.key_id.is_empty()).then(|| fields.key_id("key_id", &request.key_id));
        let actor = fields.line("actor", request.actor, 0..=255);
        let of = in_view(&caller, tenant, Action::EventsRead);
        let query = EventQuery {
            tenants: of.as_ref().cloned().unwrap_or(TenantSet::These(Vec::new())),
            key_id: key.flatten(),
            owner_id: fields.optional_owner_id("owner_id", request.owner_id),
            actor: (!actor.is_empty()).then_some(actor),
            kinds: parse_kinds(&mut fields, &request.types),
            after: fields.time("after", request.after),
            before: fields.time("before", request.before),
        };
        let page = fields.page(&query, request.page_size, &request.page_token);
        fields.check()?;
        of?;
        let found = self
            .log
            .list(&caller.principal, &query, &page.and_one())
            .await?;
        let (events, next_page_token) = response::list(
            &query,
            &page,
            found,
            |event| event.revision.to_string(),
            response::event,
        );
        Ok(Response::new(ListEventsResponse {
            events,
            next_page_token,
        }))
    }

    type WatchEventsStream =
        Pin<Box<dyn Stream<Item = Result<WatchEventsResponse, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let caller = self.identify(&request, Action::EventsRead).await?;
        let request = request.into_inner();
        let mut fields = Fields::default();
        let tenant = fields.optional_tenant_id("tenant_id", request.tenant_id);
        if request.start_revision < 0 {
            fields.note("start_revision", "must be 0 (from the beginning) or more");
        }
        if request.from_now && request.start_revision != 0 {
            fields.note("from_now", "must not be given together with start_revision");
        }
        fields.check()?;
        let from = (!request.from_now).then_some(request.start_revision);
        let watch = Watch {
            caller,
            tenant,
            from,
            store_id: Some(request.store_id).filter(|id| !id.is_empty()),
        };
        let (position, events) = self.log.follow(watch, self.stop.clone()).await?;
        let started = Message::Started(WatchStarted {
            store_id: position.store_id,
            head: position.head,
        });
        let events =
            ReceiverStream::new(events).map(|event| Ok(Message::Event(response::event(event?))));
        let events = once(Ok(started))
            .chain(events)
            .map(|message: Result<_, Status>| {
                let message = Some(message?);
                Ok(WatchEventsResponse { message })
            });
        // A stream that ends without an error was stopped: the client should continue elsewhere.
        let events = events.chain(once(Err(status::stopping())));
        Ok(Response::new(Box::pin(events)))
    }
}

fn parse_kinds(fields: &mut Fields, types: &[i32]) -> Vec<EventKind> {
    let mut kinds = Vec::new();
    for (place, kind) in types.iter().enumerate() {
        let field = format!("types[{place}]");
        let kind = match fields.choice(&field, *kind, proto::EventType::as_str_name) {
            Some(proto::EventType::KeyCreated) => EventKind::KeyCreated,
            Some(proto::EventType::KeyUpdated) => EventKind::KeyUpdated,
            Some(proto::EventType::KeyRotated) => EventKind::KeyRotated,
            Some(proto::EventType::KeyRevoked) => EventKind::KeyRevoked,
            Some(proto::EventType::KeysRevoked) => EventKind::KeysRevoked,
            Some(proto::EventType::OwnerCreated) => EventKind::OwnerCreated,
            Some(proto::EventType::OwnerUpdated) => EventKind::OwnerUpdated,
            Some(proto::EventType::OwnerDeleted) => EventKind::OwnerDeleted,
            Some(proto::EventType::TenantCreated) => EventKind::TenantCreated,
            Some(proto::EventType::TenantUpdated) => EventKind::TenantUpdated,
            Some(proto::EventType::TenantDeleted) => EventKind::TenantDeleted,
            Some(proto::EventType::Unspecified) | None => continue,
        };
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds
}
