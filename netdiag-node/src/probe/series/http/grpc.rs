//! grpc.health.v1.Health/Check: two messages with one field each, written and read by hand.

use http::HeaderMap;
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeStage};
use prost::bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field};

/// Where the health service is asked (gRPC's doc/health-checking.md).
pub(super) const PATH: &str = "/grpc.health.v1.Health/Check";
/// One answer has 7 bytes; fields that we do not know may follow.
pub(super) const MAX_ANSWER_BYTES: u64 = 4 * 1024;
/// A service's name is at most so long here; gRPC has no limit.
const MAX_SERVICE_BYTES: usize = 1_024;
/// Flag and length before each message (gRPC's PROTOCOL-HTTP2.md).
const PREFIX_BYTES: usize = 5;

/// `HealthCheckRequest { service = 1 }` behind its prefix.
pub(super) fn request(service: &str) -> Result<Vec<u8>, String> {
    if service.len() > MAX_SERVICE_BYTES {
        return Err(format!("a service's name of {} bytes is too long: at most {MAX_SERVICE_BYTES}", service.len()));
    }
    let mut message = Vec::new();
    if !service.is_empty() {
        // Field 1, length-delimited.
        message.push(0x0a);
        encode_varint(service.len() as u64, &mut message);
        message.extend(service.as_bytes());
    }
    let length = u32::try_from(message.len()).map_err(|error| error.to_string())?;
    let mut bytes = vec![0];
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    Ok(bytes)
}

/// What a check came to.
pub(super) struct Health {
    /// The answer's own status; none where it was no gRPC.
    pub(super) status: Option<u16>,
    /// The service's state by its name.
    pub(super) state: Option<String>,
    /// Why that is no success.
    pub(super) failure: Option<ProbeFailure>,
}

pub(super) fn judge(headers: &HeaderMap, trailers: Option<&HeaderMap>, body: &[u8]) -> Health {
    // A failure without an answer has its status in the head ("Trailers-Only").
    let field = |name: &str| trailers.and_then(|trailers| trailers.get(name)).or_else(|| headers.get(name));
    let status = field("grpc-status").and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<u16>().ok());
    let (state, failure) = match status {
        Some(0) => match state(body) {
            Ok(state) if state == "SERVING" => (Some(state), None),
            Ok(state) => {
                let why = format!("the service is {state}");
                (Some(state), Some(failed(FailureClass::Status, why)))
            }
            Err(why) => (None, Some(failed(FailureClass::Protocol, why))),
        },
        Some(code) => {
            let message = field("grpc-message").and_then(|value| value.to_str().ok()).unwrap_or_default();
            let message: String = message.chars().take(256).collect();
            let state = (code == 5).then(|| "SERVICE_UNKNOWN".to_owned());
            let why = format!("grpc-status {code} ({}) {message}", name(code));
            (state, Some(failed(FailureClass::Status, why)))
        }
        None => (None, Some(failed(FailureClass::Protocol, "no grpc-status came: this is no gRPC".to_owned()))),
    };
    Health { status, state, failure }
}

/// `HealthCheckResponse { status = 1 }` behind its prefix.
fn state(body: &[u8]) -> Result<String, String> {
    let Some((prefix, rest)) = body.split_at_checked(PREFIX_BYTES) else {
        return Err(format!("the answer has {} bytes: no message", body.len()));
    };
    if prefix[0] != 0 {
        return Err("the answer is compressed, which was not asked for".to_owned());
    }
    let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
    let mut message =
        rest.get(..length).ok_or_else(|| format!("the message has {length} bytes, {} came", rest.len()))?;
    let broken = |error: prost::DecodeError| format!("the message cannot be read: {error}");
    let mut status = 0;
    while message.has_remaining() {
        let (tag, wire) = decode_key(&mut message).map_err(broken)?;
        if tag == 1 && wire == WireType::Varint {
            status = decode_varint(&mut message).map_err(broken)?;
        } else {
            skip_field(wire, tag, &mut message, DecodeContext::default()).map_err(broken)?;
        }
    }
    Ok(match status {
        0 => "UNKNOWN".to_owned(),
        1 => "SERVING".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => format!("STATUS{other}"),
    })
}

/// As in gRPC's doc/statuscodes.md.
fn name(code: u16) -> &'static str {
    match code {
        1 => "CANCELLED",
        2 => "UNKNOWN",
        3 => "INVALID_ARGUMENT",
        4 => "DEADLINE_EXCEEDED",
        5 => "NOT_FOUND",
        6 => "ALREADY_EXISTS",
        7 => "PERMISSION_DENIED",
        8 => "RESOURCE_EXHAUSTED",
        9 => "FAILED_PRECONDITION",
        10 => "ABORTED",
        11 => "OUT_OF_RANGE",
        12 => "UNIMPLEMENTED",
        13 => "INTERNAL",
        14 => "UNAVAILABLE",
        15 => "DATA_LOSS",
        16 => "UNAUTHENTICATED",
        _ => "no code of gRPC",
    }
}

fn failed(class: FailureClass, why: String) -> ProbeFailure {
    ProbeFailure { stage: ProbeStage::Answer, class, errno: None, said_by: None, icmp: None, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trailers(status: &'static str) -> HeaderMap {
        HeaderMap::from_iter([("grpc-status".parse().unwrap(), http::HeaderValue::from_static(status))])
    }

    #[test]
    fn messages_are_those_of_the_health_service() {
        assert_eq!(request("").unwrap(), [0, 0, 0, 0, 0]);
        assert_eq!(request("db").unwrap(), [0, 0, 0, 0, 4, 0x0a, 2, b'd', b'b']);
        assert!(request(&"x".repeat(2000)).is_err());
    }

    #[test]
    fn answers_are_held_against_status_and_length() {
        let judged = |status, body: &[u8]| {
            let health = judge(&HeaderMap::new(), Some(&trailers(status)), body);
            assert_eq!(health.status, status.parse().ok());
            (health.state, health.failure.map(|failure| failure.class))
        };
        assert_eq!(judged("0", &[0, 0, 0, 0, 2, 8, 1]), (Some("SERVING".to_owned()), None));
        assert_eq!(judged("0", &[0, 0, 0, 0, 2, 8, 2]).1, Some(FailureClass::Status));
        assert_eq!(judged("0", &[0, 0, 0, 0, 0]), (Some("UNKNOWN".to_owned()), Some(FailureClass::Status)));
        assert_eq!(judged("0", &[0, 0xff, 0xff, 0xff, 0xff, 8]).1, Some(FailureClass::Protocol));
        assert_eq!(judged("0", &[0, 0, 0, 0, 2, 0xff, 0xff]).1, Some(FailureClass::Protocol));
        assert_eq!(judged("5", &[]), (Some("SERVICE_UNKNOWN".to_owned()), Some(FailureClass::Status)));
        assert_eq!(judged("12", &[]), (None, Some(FailureClass::Status)));
        let nothing = judge(&HeaderMap::new(), None, &[]);
        assert_eq!((nothing.status, nothing.failure.unwrap().class), (None, FailureClass::Protocol));
    }
}
