//! Laws of the artifacts.

use super::*;

#[tokio::test]
async fn an_address_leads_nowhere_out_of_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(&dir.path().join("artifacts")).unwrap();
    std::fs::write(dir.path().join("secret"), b"secret").unwrap();
    for text in ["../secret", "secret", dir.path().join("secret").to_str().unwrap()] {
        let hash = ArtifactHash(text.to_owned());
        assert_eq!(artifacts.read(&hash).await.unwrap(), None);
        assert!(artifacts.path(&hash).starts_with(dir.path().join("artifacts")));
        assert!(serde_json::from_value::<ArtifactHash>(text.into()).is_err());
    }
}

#[test]
fn only_a_hash_is_an_address() {
    let hash = ArtifactHash::of(b"x");
    assert_eq!(ArtifactHash::parse(&hash.0), Some(hash));
    for text in ["", "../../etc/passwd", &"A".repeat(64), &"0".repeat(63)] {
        assert_eq!(ArtifactHash::parse(text), None);
    }
}

#[tokio::test]
async fn equal_bytes_are_kept_once() {
    let dir = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::open(dir.path()).unwrap();
    let kept = artifacts.put(b"kept".to_vec()).await.unwrap();
    assert_eq!(artifacts.put(b"kept".to_vec()).await.unwrap(), kept);
    assert_eq!(
        artifacts.read(&kept).await.unwrap().as_deref(),
        Some(&b"kept"[..])
    );
    assert_eq!(contents(dir.path()).len(), 1);
}
