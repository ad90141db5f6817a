use proptest::prelude::*;

use super::*;

fn app(text: &str) -> AppKey {
    AppKey::parse(text).expect("valid")
}

fn at(current: u32) -> Epochs {
    Epochs::of(current, Revocation::default())
}

#[test]
fn a_credential_holds_for_its_secret_app_device_and_epochs_only() {
    let secret = Secret::from_bytes([7; 32]);
    let credential = issue(&secret, &app("demo"), "d-1", 4);
    assert_eq!(credential.len(), BYTES);
    assert!(credential.len() <= crate::limits::CREDENTIAL_BYTES);
    assert_eq!(from_text(&format!(" {}\n", to_text(&credential))), Some(credential.clone()));
    let check = |app: &AppKey, device, current| verify(&secret, app, device, &credential, at(current));
    assert_eq!(check(&app("demo"), "d-1", 4), Ok(Verified { epoch: 4, renew: false }));
    assert_eq!(check(&app("demo"), "d-1", 5), Ok(Verified { epoch: 4, renew: true }));
    assert_eq!(check(&app("demo"), "d-1", 6), Err(CredentialError::Revoked { epoch: 4, current: 6 }));
    assert_eq!(check(&app("demo"), "d-1", 3), Err(CredentialError::Ahead { epoch: 4, current: 3 }));
    assert_eq!(check(&app("demo"), "d-2", 4), Err(CredentialError::Wrong));
    assert_eq!(check(&app("demo2"), "d-1", 4), Err(CredentialError::Wrong));
    // A character that moves from one to the other names another pair.
    assert_eq!(check(&app("dem"), "od-1", 4), Err(CredentialError::Wrong));
    let other = Secret::from_bytes([8; 32]);
    assert_eq!(verify(&other, &app("demo"), "d-1", &credential, at(4)), Err(CredentialError::Wrong));
}

#[test]
fn every_changed_bit_and_length_is_refused() {
    let secret = Secret::from_bytes([7; 32]);
    let credential = issue(&secret, &app("demo"), "d-1", 1);
    for bit in 0..credential.len() * 8 {
        let mut changed = credential.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(verify(&secret, &app("demo"), "d-1", &changed, at(1)).is_err(), "bit {bit}");
    }
    for length in 0..credential.len() {
        let result = verify(&secret, &app("demo"), "d-1", &credential[..length], at(1));
        assert_eq!(result, Err(CredentialError::Malformed));
    }
    let longer = [&credential[..], &[0]].concat();
    assert_eq!(verify(&secret, &app("demo"), "d-1", &longer, at(1)), Err(CredentialError::Malformed));
}

#[test]
fn secrets_stay_out_of_debug_output_and_survive_their_file() {
    let secret = Secret::generate().expect("random numbers");
    assert_eq!(format!("{secret:?}"), "Secret(..)");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("app.secret");
    std::fs::write(&path, secret.to_hex() + "\n").expect("written");
    assert_eq!(Secret::load(&path).expect("loaded"), secret);
    std::fs::write(&path, "no secret").expect("written");
    assert!(matches!(Secret::load(&path), Err(SecretError::Content { .. })));
    assert!(matches!(Secret::load(&dir.path().join("none")), Err(SecretError::Read { .. })));
}

#[test]
fn epochs_at_both_ends_neither_wrap_nor_panic() {
    let secret = Secret::from_bytes([7; 32]);
    let check = |epoch, current| {
        verify(&secret, &app("demo"), "d-1", &issue(&secret, &app("demo"), "d-1", epoch), at(current))
    };
    assert_eq!(check(0, 0), Ok(Verified { epoch: 0, renew: false }));
    assert_eq!(check(0, 1), Ok(Verified { epoch: 0, renew: true }));
    assert_eq!(check(u32::MAX, 0), Err(CredentialError::Ahead { epoch: u32::MAX, current: 0 }));
    assert_eq!(check(0, u32::MAX), Err(CredentialError::Revoked { epoch: 0, current: u32::MAX }));
    assert_eq!(check(u32::MAX - 1, u32::MAX), Ok(Verified { epoch: u32::MAX - 1, renew: true }));
    let last = Revocation { min_epoch: u32::MAX, locked: false }.next(3, true);
    assert_eq!(last, Revocation { min_epoch: u32::MAX, locked: true });
    assert_eq!(Epochs::of(3, last).current(), None);
}

#[test]
fn a_revocation_ends_all_credentials_of_one_device_whatever_the_apps_epoch_becomes() {
    let secret = Secret::from_bytes([7; 32]);
    let check = |epoch, app_epoch, revocation| {
        let credential = issue(&secret, &app("demo"), "d-1", epoch);
        verify(&secret, &app("demo"), "d-1", &credential, Epochs::of(app_epoch, revocation))
    };
    let locked = Revocation::default().next(4, false);
    for (epoch, app_epoch) in [(3, 4), (4, 4), (5, 4), (5, 5), (9, 9)] {
        assert_eq!(check(epoch, app_epoch, locked), Err(CredentialError::DeviceLocked));
    }
    // Let in again: what it registers for now is above all that it ever had.
    let allowed = locked.next(4, true);
    assert_eq!(Epochs::of(4, allowed).current(), Some(6));
    assert_eq!(check(6, 4, allowed), Ok(Verified { epoch: 6, renew: false }));
    assert_eq!(check(5, 4, allowed), Err(CredentialError::DeviceRevoked { epoch: 5, min_epoch: 6 }));
    assert_eq!(check(5, 6, allowed), Err(CredentialError::DeviceRevoked { epoch: 5, min_epoch: 6 }));
    // The app's epoch comes past it: as if nothing had been.
    assert_eq!(check(6, 7, allowed), Ok(Verified { epoch: 6, renew: true }));
    assert_eq!(check(6, 8, allowed), Err(CredentialError::Revoked { epoch: 6, current: 8 }));
}

#[test]
fn an_install_secret_has_one_id_an_app_and_the_id_says_nothing_of_it() {
    let secret = Secret::from_bytes([7; 32]);
    let install = InstallSecret::from_bytes(&[9; 16]).expect("16 bytes");
    let id = device_id(&secret, &app("demo"), &install);
    assert_eq!(id, device_id(&secret, &app("demo"), &install));
    assert!(crate::wire::device::is_device_id(&id) && id.len() == 32, "{id}");
    assert_ne!(id, device_id(&secret, &app("demo2"), &install));
    assert_ne!(id, device_id(&Secret::from_bytes([8; 32]), &app("demo"), &install));
    let other = InstallSecret::from_hex("09090909090909090909090909090908").expect("32 digits");
    assert_ne!(id, device_id(&secret, &app("demo"), &other));
    assert_eq!(InstallSecret::from_hex(&other.to_hex()), Some(other));
    assert_eq!(format!("{other:?}"), "InstallSecret(..)");
    for bytes in [&[][..], &[1; 15], &[1; 17], &[0; 16]] {
        assert_eq!(InstallSecret::from_bytes(bytes), None);
    }
    assert_ne!(InstallSecret::generate().expect("random"), InstallSecret::generate().expect("random"));
}

proptest! {
    #[test]
    fn one_installation_has_one_id_and_another_one_another(
        secret in any::<[u8; 32]>(),
        one in any::<[u8; 16]>(),
        other in any::<[u8; 16]>(),
        apps in ("[a-z]{1,32}", "[a-z]{1,32}"),
    ) {
        prop_assume!(one != [0; 16] && other != [0; 16]);
        let id = |app_key: &str, install: [u8; 16]| {
            let install = InstallSecret::from_bytes(&install).expect("not zero");
            device_id(&Secret::from_bytes(secret), &app(app_key), &install)
        };
        prop_assert_eq!(id(&apps.0, one), id(&apps.0, one));
        prop_assert_eq!(id(&apps.0, one) == id(&apps.1, other), apps.0 == apps.1 && one == other);
    }

    #[test]
    fn no_bytes_are_a_credential_by_chance_or_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        epoch in any::<u32>(),
    ) {
        let secret = Secret::from_bytes([7; 32]);
        prop_assert!(verify(&secret, &app("demo"), "d-1", &bytes, at(epoch)).is_err());
    }
}
