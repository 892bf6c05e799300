//! Files of the app registry.

use super::protocol::registry::{AppRegistry, BUCKET_COUNT, bucket_of, file_name};

/// The bytes of one file.
pub fn check(data: &[u8]) {
    let registry = match AppRegistry::parse([("0.json", data)]) {
        Ok(registry) => registry,
        Err(error) => return assert_eq!(error.file, "0.json"),
    };
    let files = registry.to_files().expect("files");
    assert_eq!(files.len(), usize::from(BUCKET_COUNT));
    let read = AppRegistry::parse(&files).expect("a registry that was written");
    assert!(read.apps().eq(registry.apps()), "written and read again");
    assert_eq!(registry.app_digests("salt").len(), registry.apps().count());
    let digests = read.app_digests("salt");
    for app in registry.apps() {
        assert_eq!(registry.by_id(&app.id), Some(app));
        assert!(files.contains_key(&file_name(bucket_of(&app.id))));
        assert_eq!(digests.get(&app.id), Some(&app.salted_digest("salt")));
        for credential in &app.credentials {
            let named = registry.by_key(credential.key.as_str()).expect("an app of each key");
            assert!(named.secret_for(credential.key.as_str()).is_some());
        }
        if let Some(signing) = app.signing_credential() {
            assert!(app.credentials.contains(signing));
        }
    }
}
