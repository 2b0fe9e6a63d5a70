use std::sync::Arc;

use http::{Method, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;

fn config_of(user: serde_json::Value) -> Config {
    let mut config = Config::new("https://10.0.0.1:6443".parse().expect("an address"));
    config.auth_info = serde_json::from_value(user).expect("a user of a kubeconfig");
    config
}

async fn token_of(user: serde_json::Value) -> Option<String> {
    let layer = tokens(&config_of(user)).expect("credentials")?;
    let value = token(&layer).await.expect("a request")?;
    Some(value.to_str().expect("text").to_owned())
}

#[tokio::test]
async fn a_token_proves_who_asks_and_other_credentials_have_none() {
    assert_eq!(token_of(serde_json::json!({"token": "abc"})).await.as_deref(), Some("Bearer abc"));
    assert_eq!(token_of(serde_json::json!({"client-certificate": "/a", "client-key": "/b"})).await, None);
    assert_eq!(token_of(serde_json::json!({"username": "u", "password": "p"})).await, None);
    assert_eq!(token_of(serde_json::json!({"token": "abc", "as": "alice"})).await, None, "it is not alice's");
}

/// An API server that answers each POST with this status, takes everything else, and writes down how it was asked.
fn access(seen: &Arc<std::sync::Mutex<Vec<String>>>, posted: StatusCode) -> Access {
    let seen = seen.clone();
    let server = tower::service_fn(move |request: Request<Body>| {
        seen.lock().expect("nobody panicked").push(request.method().to_string());
        let status = if request.method() == Method::POST { posted } else { StatusCode::OK };
        let kept = serde_json::to_vec(&object("5ec7e7").expect("a request")).expect("JSON");
        let body = if status.is_success() { kept } else { b"no".to_vec() };
        let mut answer = Response::new(Body::from(body));
        *answer.status_mut() = status;
        std::future::ready(Ok::<_, BoxError>(answer))
    });
    Access {
        client: ::kube::Client::new(server, "default"),
        context: String::new(),
        server: String::new(),
        config: Arc::new(config_of(serde_json::json!({}))),
    }
}

#[tokio::test]
async fn a_proof_is_kept_until_it_is_withdrawn() {
    let seen = Arc::default();
    let prover = Prover::new(&access(&seen, StatusCode::CREATED)).expect("no credentials");
    prover.withdraw().await;
    let first = prover.authorization().await.expect("a proof");
    assert_eq!(prover.authorization().await.as_ref(), Ok(&first));
    prover.withdraw().await;
    assert_ne!(prover.authorization().await.expect("a proof"), first, "a new one after it was taken back");
    assert_eq!(*seen.lock().expect("nobody panicked"), ["POST", "DELETE", "POST"]);
}

#[tokio::test]
async fn a_token_that_is_not_accepted_gives_way_to_a_witness() {
    let seen = Arc::default();
    let config = Arc::new(config_of(serde_json::json!({"token": "abc"})));
    let known = Access { config: config.clone(), ..access(&seen, StatusCode::CREATED) };
    let prover = Prover::new(&known).expect("a token");
    let token = prover.authorization().await.expect("a token");
    assert_eq!((token.as_bytes(), is_witnessed(&token)), (&b"Bearer abc"[..], false));
    prover.refused(&token).await;
    let witnessed = prover.authorization().await.expect("a proof");
    assert!(is_witnessed(&witnessed));
    prover.refused(&witnessed).await;
    let newer = prover.authorization().await.expect("a proof");
    assert_ne!(newer, witnessed);
    prover.refused(&witnessed).await;
    assert_eq!(prover.authorization().await.as_ref(), Ok(&newer), "who showed the older one takes nothing from others");
    assert_eq!(*seen.lock().expect("nobody panicked"), ["POST", "DELETE", "POST"]);
    let powerless = Access { config, ..access(&seen, StatusCode::FORBIDDEN) };
    let prover = Prover::new(&powerless).expect("a token");
    prover.refused(&token).await;
    let why = prover.authorization().await.expect_err("no right");
    assert!(why.starts_with(TOKEN_REFUSED) && why.contains("netdiag-asker"), "{why}");
    assert_eq!(prover.authorization().await, Ok(token), "it may have been refused for a moment");
}

#[tokio::test]
async fn what_may_have_been_made_all_the_same_is_deleted() {
    for (posted, asked) in [
        (StatusCode::GATEWAY_TIMEOUT, &["POST", "DELETE"][..]),
        (StatusCode::CONFLICT, &["POST", "DELETE"][..]),
        (StatusCode::FORBIDDEN, &["POST"][..]),
        (StatusCode::UNAUTHORIZED, &["POST"][..]),
    ] {
        let seen = Arc::default();
        let prover = Prover::new(&access(&seen, posted)).expect("no credentials");
        prover.authorization().await.expect_err("no proof");
        prover.withdraw().await;
        assert_eq!(*seen.lock().expect("nobody panicked"), asked, "{posted}");
    }
}

#[test]
fn the_object_tells_nobody_the_secret() {
    let object = object("5ec7e7").expect("a request");
    let name = object.metadata.name.clone().expect("a name");
    assert_eq!(name.len(), "netdiag-asker-".len() + 64);
    let written = serde_json::to_string(&object).expect("JSON");
    assert!(!written.contains("5ec7e7"), "{written}");
    assert_eq!(name, name_of("5ec7e7"));
    assert_ne!(name, name_of("5ec7e8"));
    let pem = String::from_utf8(object.spec.request.0).expect("PEM");
    assert!(pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{pem}");
}

/// As the API server keeps it: created a minute after the epoch.
fn kept(signer: &str, name: Option<&str>) -> CertificateSigningRequest {
    let mut kept = object("5ec7e7").expect("a request");
    kept.metadata.creation_timestamp = Some(Time(Timestamp::from_second(60).expect("a time")));
    kept.spec.signer_name = signer.to_owned();
    kept.spec.username = name.map(str::to_owned);
    kept.spec.groups = Some(vec!["devs".to_owned()]);
    kept
}

#[test]
fn only_requests_of_our_own_signer_name_somebody() {
    let created =
        |signer: &str, name: Option<&str>| creator(kept(signer, name), Timestamp::from_second(61).expect("a time"));
    let alice = created(SIGNER, Some("alice")).expect("alice");
    assert_eq!((alice.name.as_str(), alice.groups.as_slice()), ("alice", &["devs".to_owned()][..]));
    assert_eq!(created("kubernetes.io/kube-apiserver-client", Some("alice")), None);
    assert_eq!(created(SIGNER, Some("")), None);
    assert_eq!(created(SIGNER, None), None);
}

#[test]
fn an_old_request_names_nobody_any_more() {
    let at = |second: i64| creator(kept(SIGNER, Some("alice")), Timestamp::from_second(second).expect("a time"));
    // Another API server's clock may be behind.
    assert!([0, 60, 60 + 3_600].into_iter().all(|second| at(second).is_some()));
    assert_eq!(at(60 + 3_601), None);
    let mut undated = kept(SIGNER, Some("alice"));
    undated.metadata.creation_timestamp = None;
    assert_eq!(creator(undated, Timestamp::UNIX_EPOCH), None);
}

#[test]
fn the_api_servers_clock_is_read_from_its_answer() {
    let of = |text: &'static str| date(&HeaderMap::from_iter([(header::DATE, HeaderValue::from_static(text))]));
    assert_eq!(of("Thu, 01 Jan 1970 01:00:01 GMT").map(Timestamp::as_second), Some(3_601));
    assert_eq!((of("yesterday"), date(&HeaderMap::new())), (None, None));
}
