//! Bounds the body of a request.
//!
//! In: a body as hyper reads it, the time it may take, the charge for its bytes. Out: the same bytes, which hold no more
//! memory than is charged, or the failure of the read.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use futures::{StreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::edge::intake::byte_budget::{InputCharge, UNCOUNTED_INPUT_BYTES};

/// Bytes of a body that are joined to one part.
const BODY_PART_BYTES: usize = 8 << 10;

/// Fails the read of a body that does not arrive in time, or does not fit into the budget.
pub(super) fn bound_body(body: Body, within: Duration, charge: Arc<InputCharge>) -> Body {
    let deadline = Instant::now() + within;
    let bounded =
        BoundedBody { parts: body.into_data_stream(), deadline, charge, uncounted_bytes: UNCOUNTED_INPUT_BYTES };
    Body::from_stream(stream::unfold(Some(bounded), |state| async move {
        let mut bounded = state?;
        match bounded.read_part().await {
            Ok(part) => Some((Ok(part?), Some(bounded))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// A body with its bounds.
struct BoundedBody {
    parts: BodyDataStream,
    deadline: Instant,
    charge: Arc<InputCharge>,
    /// The bytes that may arrive without being charged.
    uncounted_bytes: usize,
}

impl BoundedBody {
    /// Reads until the bytes are enough for one part; `None` at the end. They are copied, because a part as hyper returns it
    /// keeps the whole buffer of its read: a body that arrives byte by byte would hold thousands of times its size.
    async fn read_part(&mut self) -> Result<Option<Bytes>, axum::BoxError> {
        let mut joined = Vec::new();
        while joined.len() < BODY_PART_BYTES {
            let next = timeout_at(self.deadline, self.parts.next()).await;
            let next = next.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let Some(part) = next.transpose()? else { break };
            self.charge.add(part.len().saturating_sub(self.uncounted_bytes))?;
            self.uncounted_bytes = self.uncounted_bytes.saturating_sub(part.len());
            joined.extend_from_slice(&part);
        }
        Ok((!joined.is_empty()).then(|| joined.into_boxed_slice().into()))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::edge::intake::byte_budget::InputBudget;
    use crate::edge::metrics::EdgeMetrics;

    #[tokio::test]
    async fn a_body_that_arrives_byte_by_byte_holds_no_buffer_of_its_reads() {
        let read = Bytes::from(vec![b'x'; 20_000]);
        let parts = (0..read.len()).map(|n| Ok::<_, Infallible>(read.slice(n..=n))).collect::<Vec<_>>();
        let metrics = Arc::<EdgeMetrics>::default();
        let charge = Arc::new(InputBudget::new(metrics.clone()).open_charge());
        let bounded = bound_body(Body::from_stream(stream::iter(parts)), Duration::from_secs(20), charge.clone());
        let joined: Vec<_> = bounded.into_data_stream().map(|part| part.expect("a part").len()).collect().await;
        assert_eq!(joined, [BODY_PART_BYTES, BODY_PART_BYTES, 20_000 - 2 * BODY_PART_BYTES]);
        assert!(read.is_unique(), "every part was copied");
        let charged = i64::try_from(20_000 - UNCOUNTED_INPUT_BYTES).expect("a number");
        assert_eq!(metrics.unfinished_input_bytes.get(), charged);
    }
}
