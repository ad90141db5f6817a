use proptest::prelude::*;

use super::*;

const NOW: Millis = 1_800_000_000_000;
const SECOND: f64 = 1_800_000_000.0;
const MAX_MS: Millis = 3_600_000;

fn app() -> AppKey {
    AppKey::parse("demo").expect("valid")
}

fn install() -> InstallSecret {
    InstallSecret::from_bytes(&[9; 16]).expect("16 bytes")
}

fn claims() -> Claims {
    Claims { aud: Audience::One("demo".into()), exp: SECOND + 300.0, iat: Some(SECOND), nbf: None, sub: None }
}

fn hmac_key(byte: u8) -> SigningKey {
    SigningKey::Hmac(vec![byte; 32])
}

fn ed25519_key() -> SigningKey {
    let der = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).expect("random");
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.as_ref()).expect("its own");
    SigningKey::Ed25519(Box::new(pair))
}

fn check(keys: &VerifyingKeys, token: &str) -> Result<(), TokenError> {
    keys.check(token.as_bytes(), &app(), &install(), NOW, MAX_MS).map(drop)
}

/// A token with this header and these claims as they stand, rightly signed with HMAC.
fn raw(header: &str, claims: &str) -> String {
    let part = |text: &str| BASE64URL_NOPAD.encode(text.as_bytes());
    let signed = format!("{}.{}", part(header), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &[7; 32]);
    let signature = hmac::sign(&key, signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
}

#[test]
fn a_token_made_here_is_taken_and_every_changed_byte_is_not() {
    for key in [hmac_key(7), ed25519_key()] {
        let token = key.sign(&claims()).expect("signed");
        let keys = key.verifying();
        assert_eq!(check(&keys, &token), Ok(()));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(keys.verify(&changed).is_err(), "byte {at} of {token}");
        }
        for length in 0..token.len() {
            assert!(keys.verify(&token.as_bytes()[..length]).is_err());
        }
        assert_eq!(check(&VerifyingKeys::default(), &token), Err(TokenError::Algorithm));
    }
    assert_eq!(check(&hmac_key(7).verifying(), ""), Err(TokenError::Missing));
}

#[test]
fn tokens_of_other_libraries_are_taken() {
    // RFC 7515, A.1: HS256 with a key of 64 bytes. Its claims are another app's.
    let key = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let secret = BASE64URL_NOPAD.decode(key.as_bytes()).expect("base64url");
    let keys = SigningKey::Hmac(secret).verifying();
    // The signature is right: what is missing is `aud`.
    assert_eq!(keys.verify(token.as_bytes()), Err(TokenError::Malformed));
    let wrong = token.replace("dBjft", "dBjfu");
    assert_eq!(keys.verify(wrong.as_bytes()), Err(TokenError::Signature));
    // RFC 8037, A.4: Ed25519.
    let public = BASE64URL_NOPAD.decode(b"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").expect("base64url");
    let keys = VerifyingKeys { hmac: Vec::new(), ed25519: vec![public.try_into().expect("32 bytes")] };
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    // The signature is right: its text is no JSON.
    assert_eq!(keys.verify(token.as_bytes()), Err(TokenError::Malformed));
    assert_eq!(keys.verify(token.replace("hgyY", "hgyZ").as_bytes()), Err(TokenError::Signature));
}

#[test]
fn the_key_decides_the_algorithm() {
    let keys = hmac_key(7).verifying();
    let good = r#"{"aud":"demo","exp":1800000300}"#;
    assert_eq!(check(&keys, &raw(r#"{"alg":"HS256"}"#, good)), Ok(()));
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"None"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"RS256"}"#,
        r#"{"alg":""}"#,
        r#"{"alg":null}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":"HS256","alg":"HS256"}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        r#"{"typ":"JWT"}"#,
        "[]",
        "",
    ] {
        assert_eq!(check(&keys, &raw(header, good)), Err(TokenError::Malformed), "{header}");
    }
    // Without a signature.
    let unsigned = raw(r#"{"alg":"none"}"#, good);
    let unsigned = &unsigned[..=unsigned.rfind('.').expect("a dot")];
    assert_eq!(check(&keys, unsigned), Err(TokenError::Malformed));
    // Signed by HMAC with the public key as the secret, which everybody knows.
    let ed25519 = ed25519_key();
    let SigningKey::Ed25519(pair) = &ed25519 else { panic!("made so") };
    let confused = SigningKey::Hmac(pair.public_key().as_ref().to_vec());
    let token = confused.sign(&claims()).expect("signed");
    assert_eq!(check(&ed25519.verifying(), &token), Err(TokenError::Algorithm));
    let mut both = ed25519.verifying();
    both.hmac = keys.hmac.clone();
    assert_eq!(check(&both, &token), Err(TokenError::Signature));
    assert_eq!(check(&both, &ed25519.sign(&claims()).expect("signed")), Ok(()));
    assert_eq!(check(&both, &hmac_key(7).sign(&claims()).expect("signed")), Ok(()));
    assert_eq!(check(&both, &hmac_key(8).sign(&claims()).expect("signed")), Err(TokenError::Signature));
}

#[test]
fn claims_are_held_to_the_app_the_time_and_the_installation() {
    let with = |change: fn(&mut Claims)| {
        let mut claims = claims();
        change(&mut claims);
        let key = hmac_key(7);
        check(&key.verifying(), &key.sign(&claims).expect("signed"))
    };
    assert_eq!(with(|c| c.aud = Audience::Many(vec!["other".into(), "demo".into()])), Ok(()));
    assert_eq!(with(|c| c.aud = Audience::One("other".into())), Err(TokenError::Audience));
    assert_eq!(with(|c| c.aud = Audience::One(String::new())), Err(TokenError::Audience));
    assert_eq!(with(|c| c.aud = Audience::Many(Vec::new())), Err(TokenError::Audience));
    // A minute of skew, and not a millisecond more.
    assert_eq!(with(|c| (c.iat, c.exp) = (None, SECOND - 59.0)), Ok(()));
    assert_eq!(with(|c| (c.iat, c.exp) = (None, SECOND - 60.0)), Err(TokenError::Expired));
    assert_eq!(with(|c| c.exp = 0.0), Err(TokenError::Expired));
    assert_eq!(with(|c| c.exp = -1e300), Err(TokenError::Expired));
    assert_eq!(with(|c| c.nbf = Some(SECOND + 60.0)), Ok(()));
    assert_eq!(with(|c| c.nbf = Some(SECOND + 60.5)), Err(TokenError::TooEarly));
    assert_eq!(with(|c| c.iat = Some(SECOND + 61.0)), Err(TokenError::TooEarly));
    // The lifetime: from now, and from when it was made.
    assert_eq!(with(|c| c.exp = SECOND + 3_600.0), Ok(()));
    assert_eq!(with(|c| c.exp = SECOND + 3_601.0), Err(TokenError::TooLong));
    assert_eq!(with(|c| (c.iat, c.exp) = (None, SECOND + 3_660.0)), Ok(()));
    assert_eq!(with(|c| (c.iat, c.exp) = (None, SECOND + 3_661.0)), Err(TokenError::TooLong));
    assert_eq!(with(|c| (c.iat, c.exp) = (None, 1e300)), Err(TokenError::TooLong));
    assert_eq!(with(|c| c.iat = Some(SECOND - 7_200.0)), Err(TokenError::TooLong));
    // The installation.
    assert_eq!(with(|c| c.sub = Some("account-7".into())), Ok(()));
    assert_eq!(with(|c| c.sub = Some(bound_to(&install()))), Ok(()));
    assert_eq!(with(|c| c.sub = Some(bound_to(&install()).to_uppercase().replace("SHA", "sha"))), Ok(()));
    assert_eq!(with(|c| c.sub = Some("sha256:".into())), Err(TokenError::OtherInstall));
    let other = InstallSecret::from_bytes(&[8; 16]).expect("16 bytes");
    let key = hmac_key(7);
    let token = key.sign(&Claims { sub: Some(bound_to(&other)), ..claims() }).expect("signed");
    assert_eq!(check(&key.verifying(), &token), Err(TokenError::OtherInstall));
}

#[test]
fn claims_of_other_types_are_malformed() {
    let keys = hmac_key(7).verifying();
    for claims in [
        r#"{"aud":"demo"}"#,
        r#"{"aud":"demo","exp":"1800000300"}"#,
        r#"{"aud":"demo","exp":null}"#,
        r#"{"aud":"demo","exp":1e999}"#,
        r#"{"aud":"demo","exp":1800000300,"exp":1}"#,
        r#"{"aud":"demo","exp":1800000300,"iat":"x"}"#,
        r#"{"aud":"demo","exp":1800000300,"nbf":{}}"#,
        r#"{"aud":"demo","exp":1800000300,"sub":7}"#,
        r#"{"aud":7,"exp":1800000300}"#,
        r#"{"exp":1800000300}"#,
        "[]",
        "",
    ] {
        assert_eq!(check(&keys, &raw(r#"{"alg":"HS256"}"#, claims)), Err(TokenError::Malformed), "{claims}");
    }
    let more = r#"{"aud":"demo","exp":1800000300.5,"iss":"x","jti":7,"nested":{"a":[1]}}"#;
    assert_eq!(check(&keys, &raw(r#"{"alg":"HS256","kid":"1"}"#, more)), Ok(()));
}

#[test]
fn key_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("key");
    let write = |text: &str| std::fs::write(&path, text).expect("written");
    let (old, new) = ("07".repeat(32), "08".repeat(32));
    write(&format!("{new}\n\n {old} \n"));
    let mut keys = VerifyingKeys::default();
    keys.add_secrets(&path).expect("two");
    assert_eq!(format!("{keys:?}"), "VerifyingKeys(2 HS256, 0 EdDSA)");
    for byte in [7, 8] {
        assert_eq!(check(&keys, &hmac_key(byte).sign(&claims()).expect("signed")), Ok(()), "both hold");
    }
    let signing = SigningKey::load(&path).expect("a secret");
    assert_eq!((signing.algorithm(), format!("{signing:?}")), ("HS256", "SigningKey::Hmac(..)".into()));
    assert_eq!(signing.verifying().hmac, [vec![8; 32]], "the first one signs");
    for bad in ["", "\n", "0707", &"07".repeat(65), "no digits", &format!("{old}\n").repeat(KEYS + 1)] {
        write(bad);
        assert!(matches!(keys.add_secrets(&path), Err(KeyError::Content { .. })), "{bad}");
        assert!(matches!(keys.add_public_keys(&path), Err(KeyError::Content { .. })), "{bad}");
    }
    assert!(matches!(keys.add_secrets(&dir.path().join("none")), Err(KeyError::Read { .. })));
    // As OpenSSL 3 writes them: `genpkey -algorithm ed25519`, `pkey -pubout`.
    let private = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    write(private);
    let signing = SigningKey::load(&path).expect("RFC 8037's key");
    let SigningKey::Ed25519(pair) = &signing else { panic!("{signing:?}") };
    let public = [&ED25519_SPKI[..], pair.public_key().as_ref()].concat();
    let public = data_encoding::BASE64.encode(&public);
    write(&format!("-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n").repeat(2));
    let mut keys = VerifyingKeys::default();
    keys.add_public_keys(&path).expect("two");
    assert_eq!(check(&keys, &signing.sign(&claims()).expect("signed")), Ok(()));
    // A key for another algorithm.
    let other = rcgen::KeyPair::generate().expect("P-256");
    write(&other.serialize_pem());
    assert!(matches!(SigningKey::load(&path), Err(KeyError::Content { .. })));
    write(&other.public_key_pem());
    assert!(matches!(keys.add_public_keys(&path), Err(KeyError::Content { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(hmac_key(7).verifying().verify(&bytes).is_err());
    }

    #[test]
    fn no_json_makes_it_panic(
        header in r#"\{("alg":("HS256"|"EdDSA"|"none"|[0-9]{1,3}|\[\]))?(,"crit":[0-9])?\}"#,
        exp in prop_oneof![any::<f64>().prop_map(|x| format!("{x:e}")), any::<i64>().prop_map(|x| x.to_string())],
        iat in any::<i64>(),
        aud in r#"("demo"|"[a-z]{0,3}"|\["demo"\]|7|null)"#,
        now in any::<u64>(),
        max in any::<u64>(),
    ) {
        let token = raw(&header, &format!(r#"{{"aud":{aud},"exp":{exp},"iat":{iat}}}"#));
        let keys = hmac_key(7).verifying();
        let checked = keys.check(token.as_bytes(), &app(), &install(), now, max);
        let is_hmac = header == r#"{"alg":"HS256"}"#;
        prop_assert!(checked.is_err() || is_hmac);
    }
}
