//! Proof of who asks, for netdiag's server behind a port-forward: what arrives there comes from its own loopback and names nobody.
//!
//! Where the credentials are a token, the token is the proof (TokenReview). Who has a client certificate instead, or asks in somebody
//! else's name (impersonation), has the API server witness it: it writes into each CertificateSigningRequest who created it, which
//! nobody can choose or change (kubernetes, pkg/registry/certificates/certificates/strategy.go, `PrepareForCreate` and
//! `PrepareForUpdate`). The object is named after the digest of a secret, so that only who knows the secret can point at it, and its
//! signer signs nothing. How old it is the API server's own clock tells: another one that is wrong is what netdiag may be asked about.

use std::time::{Duration, Instant};

use ::kube::api::{DeleteParams, ObjectMeta, PostParams};
use ::kube::client::middleware::AuthLayer;
use ::kube::client::{Body, ConfigExt};
use ::kube::core::Status;
use ::kube::{Api, Config};
use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::Mutex;
use tower::{BoxError, Layer, ServiceExt};

use super::Access;
use super::error::{RequestError, bounded, innermost};
use super::review::{self, User};
use crate::ask::SourceError;

/// What a bearer begins with that is no token but the secret of a witnessed proof.
const WITNESSED: &str = "netdiag-asker.";
/// Nobody signs for it; those of Kubernetes are `kubernetes.io/…`.
const SIGNER: &str = "netdiag.dev/asker";
/// One of a request has to be named; nobody signs it.
const USAGE: &str = "client auth";
const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// For how long an object proves who created it. Their groups are written in it as they were then, and who has no right to delete it
/// leaves that to the API: a pending request goes after 24 h, an approved one after 1 h (kubernetes,
/// pkg/controller/certificates/cleaner/cleaner.go), and where that controller does not run, never.
const PROVES_FOR: SignedDuration = SignedDuration::from_hours(1);
/// A new one is made well before. A machine that was suspended does not know for how long (`CLOCK_MONOTONIC` stands still meanwhile,
/// clock_gettime(2)): the server's 401 tells.
const RENEW_AFTER: Duration = Duration::from_mins(30);

/// Whoever asks from here, with what it takes to prove it again and again.
pub(super) struct Prover {
    access: Access,
    /// Adds a token to requests, and refreshes it when it has to be; none where no token proves who asks.
    tokens: Option<AuthLayer>,
    witnessed: Mutex<Option<Witnessed>>,
}

struct Witnessed {
    secret: String,
    since: Instant,
}

impl Prover {
    pub fn new(access: &Access) -> Result<Self, String> {
        Ok(Self { access: access.clone(), tokens: tokens(&access.config)?, witnessed: Mutex::default() })
    }

    /// The value of `Authorization`.
    pub async fn authorization(&self) -> Result<HeaderValue, String> {
        if let Some(layer) = &self.tokens
            && let Some(value) = token(layer).await?
        {
            return Ok(value);
        }
        let mut witnessed = self.witnessed.lock().await;
        if let Some(known) = &*witnessed
            && known.since.elapsed() < RENEW_AFTER
        {
            return Ok(bearer(&known.secret));
        }
        if let Some(old) = witnessed.take() {
            self.delete(&old.secret).await;
        }
        let mut random = [0; 32];
        SystemRandom::new().fill(&mut random).map_err(|_| "the kernel gives no random numbers".to_owned())?;
        let secret = HEXLOWER.encode(&random);
        let object = object(&secret).map_err(|error| format!("cannot make a request for a certificate: {error}"))?;
        let value = bearer(&secret);
        // Kept before it is there: whoever is stopped while the API server answers withdraws it nevertheless.
        *witnessed = Some(Witnessed { secret: secret.clone(), since: Instant::now() });
        if let Err(error) = self.create(&object).await {
            if may_be_there(&error) {
                self.delete(&secret).await;
            }
            *witnessed = None;
            return Err(words(&error));
        }
        Ok(value)
    }

    /// Takes back what was left in the cluster, if something was.
    pub async fn withdraw(&self) -> bool {
        let Some(witnessed) = self.witnessed.lock().await.take() else { return false };
        self.delete(&witnessed.secret).await;
        true
    }

    async fn create(&self, object: &CertificateSigningRequest) -> Result<(), RequestError> {
        let parameters = PostParams::default();
        bounded(requests(&self.access).create(&parameters, object)).await.map(drop)
    }

    async fn delete(&self, secret: &str) {
        let parameters = DeleteParams::default();
        // See PROVES_FOR for what becomes of it otherwise.
        let _ = bounded(requests(&self.access).delete(&name_of(secret), &parameters)).await;
    }
}

/// Whether the API server may have made the object before it failed: one that does not answer in time may make it yet.
fn may_be_there(error: &RequestError) -> bool {
    !matches!(error, RequestError::Forbidden(_) | RequestError::Unauthorized(_) | RequestError::NotServed(_))
}

/// Why there is no object.
fn words(error: &RequestError) -> String {
    match error {
        RequestError::Forbidden(_) => format!(
            "{error}; credentials without a token prove it by a CertificateSigningRequest that nobody signs: have the \
             ClusterRole netdiag-asker bound to you, or use a kubeconfig with a token (kubectl create token)"
        ),
        _ => error.to_string(),
    }
}

/// Who sent this bearer; none when the API server does not stand for it.
pub async fn who(access: &Access, sent: &str) -> Result<Option<User>, SourceError> {
    let Some(secret) = sent.strip_prefix(WITNESSED) else { return review::who(access, sent).await };
    match bounded(read(access, &name_of(secret))).await {
        Ok((object, Some(now))) => Ok(creator(object, now)),
        Ok((_, None)) => {
            let why = "cannot check who asks: the API server's answer has no Date, so the proof's age is not known; \
                       use a kubeconfig with a token (kubectl create token)";
            Err(SourceError { message: why.to_owned() })
        }
        Err(RequestError::NotServed(_)) => Ok(None),
        Err(error) => Err(SourceError {
            message: format!(
                "cannot check who asks: {error}; it takes the verb get on \
                 certificatesigningrequests.certificates.k8s.io"
            ),
        }),
    }
}

/// The object, and what time it is by the API server's clock, which kube's typed requests do not tell.
async fn read(access: &Access, name: &str) -> ::kube::Result<(CertificateSigningRequest, Option<Timestamp>)> {
    let request = Request::get(format!("{PATH}/{name}")).body(Body::empty()).expect("digits and letters make a path");
    let (head, body) = access.client.send(request).await?.into_parts();
    let body = body.collect_bytes().await?;
    if !head.status.is_success() {
        let status: Status = serde_json::from_slice(&body).unwrap_or_default();
        return Err(::kube::Error::Api(status.with_code(head.status.as_u16()).boxed()));
    }
    let object = serde_json::from_slice(&body).map_err(::kube::Error::SerdeError)?;
    Ok((object, date(&head.headers)))
}

/// RFC 9110, 6.6.1; Go's servers send it with every answer.
fn date(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp())
}

fn requests(access: &Access) -> Api<CertificateSigningRequest> {
    Api::all(access.client.clone())
}

/// None where the token is not that of whoever the request is made as.
fn tokens(config: &Config) -> Result<Option<AuthLayer>, String> {
    if config.auth_info.impersonate.is_some() {
        return Ok(None);
    }
    config.auth_layer().map_err(|error| innermost(&error))
}

/// What the layer adds to a request, if that is a token: an inner service that answers with it.
async fn token(layer: &AuthLayer) -> Result<Option<HeaderValue>, String> {
    let echo = tower::service_fn(|request: Request<Body>| {
        let added = request.headers().get(header::AUTHORIZATION).cloned();
        std::future::ready(Ok::<_, BoxError>(Response::new(added)))
    });
    let answer = layer.layer(echo).oneshot(Request::new(Body::empty())).await.map_err(|error| error.to_string())?;
    Ok(answer.into_body().filter(|value| value.as_bytes().starts_with(b"Bearer ")))
}

fn bearer(secret: &str) -> HeaderValue {
    let mut value =
        HeaderValue::try_from(format!("Bearer {WITNESSED}{secret}")).expect("hexadecimal digits may stand in a header");
    value.set_sensitive(true);
    value
}

fn name_of(secret: &str) -> String {
    format!("netdiag-asker-{}", HEXLOWER.encode(digest(&SHA256, secret.as_bytes()).as_ref()))
}

/// The API server checks that it is signed by its own key, which is forgotten here.
fn object(secret: &str) -> Result<CertificateSigningRequest, rcgen::Error> {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "netdiag asker");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = subject;
    let pem = parameters.serialize_request(&KeyPair::generate()?)?.pem()?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta { name: Some(name_of(secret)), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: SIGNER.to_owned(),
            usages: Some(vec![USAGE.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

/// None where it proves nothing, or nothing any more.
fn creator(object: CertificateSigningRequest, now: Timestamp) -> Option<User> {
    let created = object.metadata.creation_timestamp?.0;
    if now.duration_since(created) > PROVES_FOR {
        return None;
    }
    let spec = object.spec;
    let name = spec.username.filter(|name| !name.is_empty() && spec.signer_name == SIGNER)?;
    Some(User {
        name,
        uid: spec.uid.unwrap_or_default(),
        groups: spec.groups.unwrap_or_default(),
        extra: spec.extra.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Method, StatusCode};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    async fn token_of(user: serde_json::Value) -> Option<String> {
        let mut config = Config::new("https://10.0.0.1:6443".parse().expect("an address"));
        config.auth_info = serde_json::from_value(user).expect("a user of a kubeconfig");
        let layer = tokens(&config).expect("credentials")?;
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
            config: Arc::new(Config::new("https://10.0.0.1:6443".parse().expect("an address"))),
        }
    }

    #[tokio::test]
    async fn a_proof_is_kept_until_it_is_withdrawn() {
        let seen = Arc::default();
        let prover = Prover::new(&access(&seen, StatusCode::CREATED)).expect("no credentials");
        assert!(!prover.withdraw().await, "nothing is there yet");
        let first = prover.authorization().await.expect("a proof");
        assert_eq!(prover.authorization().await.as_ref(), Ok(&first));
        assert!(prover.withdraw().await);
        assert_ne!(prover.authorization().await.expect("a proof"), first, "a new one after it was not accepted");
        assert_eq!(*seen.lock().expect("nobody panicked"), ["POST", "DELETE", "POST"]);
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
            assert!(!prover.withdraw().await, "nothing more is to be taken back");
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
}
