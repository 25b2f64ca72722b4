//! The archive of an image: an OCI layout (image-spec, image-layout.md) with the manifest.json of `docker save` in it, so
//! that containerd, docker and podman all take it. The same input gives the same bytes.

use std::{fmt::Write as _, io::Write as _, path::Path};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// The files of an image.
pub(crate) struct Layer {
    tar: Builder<Vec<u8>>,
}

/// An image of one layer.
pub(crate) struct Image {
    /// `HOST/NAME:TAG`
    pub(crate) name: String,
    pub(crate) arch: &'static str,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    /// `NAME=VALUE`
    pub(crate) env: Vec<String>,
    pub(crate) labels: Vec<(&'static str, &'static str)>,
    pub(crate) layer: Layer,
}

/// Something that is named by its digest.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
}

impl Default for Layer {
    fn default() -> Self {
        Self {
            tar: Builder::new(Vec::new()),
        }
    }
}

impl Layer {
    /// Adds a directory.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0);
        Ok(self
            .tar
            .append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    /// Adds a file.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        let mut header = header(EntryType::Regular, mode, bytes.len());
        Ok(self.tar.append_data(&mut header, path, bytes)?)
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        Ok(self.tar.append_link(&mut header, path, target)?)
    }
}

impl Image {
    /// The archive.
    pub(crate) fn archive(self) -> Result<Vec<u8>> {
        let layer = self.layer.tar.into_inner()?;
        let unpacked = digest(&layer);
        // Neither a time nor a name in its header.
        let mut packer = GzBuilder::new().write(Vec::new(), Compression::best());
        packer.write_all(&layer)?;
        let layer = Blob::new(packer.finish()?);
        let labels: serde_json::Map<String, Value> = self
            .labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(*value)))
            .collect();
        let config = Blob::json(&json!({
            "architecture": self.arch,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Env": self.env,
                "Labels": labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{unpacked}")]},
            "history": [{"created_by": "cargo xtask image"}],
        }))?;
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.described("application/vnd.oci.image.config.v1+json"),
            "layers": [layer.described("application/vnd.oci.image.layer.v1.tar+gzip")],
        }))?;
        let mut described = manifest.described(MANIFEST);
        described["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": self.name,
        });
        described["platform"] = json!({"architecture": self.arch, "os": "linux"});
        let index = json!({"schemaVersion": 2, "manifests": [described]});
        let saved = json!([{
            "Config": config.path(),
            "RepoTags": [self.name],
            "Layers": [layer.path()],
        }]);
        let mut archive = Layer::default();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion": "1.0.0"}"#)?;
        archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        archive.file("manifest.json", 0o644, &serde_json::to_vec(&saved)?)?;
        archive.directory("blobs")?;
        archive.directory("blobs/sha256")?;
        for blob in [&config, &manifest, &layer] {
            archive.file(&blob.path(), 0o644, &blob.bytes)?;
        }
        Ok(archive.tar.into_inner()?)
    }

    /// Writes the archive as `FILE`.
    pub(crate) fn write(self, file: &Path) -> Result<()> {
        std::fs::write(file, self.archive()?).with_context(|| format!("cannot write {}", file.display()))
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let digest = digest(&bytes);
        Self { bytes, digest }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.digest)
    }

    fn described(&self, kind: &str) -> Value {
        json!({
            "mediaType": kind,
            "digest": format!("sha256:{}", self.digest),
            "size": self.bytes.len(),
        })
    }
}

fn digest(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a String cannot fail.
        let _infallible = write!(text, "{byte:02x}");
    }
    text
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    // Root's, and of no time.
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        let mut layer = Layer::default();
        layer.directory("etc").expect("a directory");
        layer.file("program", 0o755, b"a program").expect("a file");
        layer.link("other", "program").expect("a link");
        Image {
            name: "localhost/x:1".to_owned(),
            arch: "amd64",
            entrypoint: vec!["/program".to_owned()],
            command: Vec::new(),
            env: Vec::new(),
            labels: vec![("org.opencontainers.image.title", "x")],
            layer,
        }
    }

    fn files(archive: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("a file");
            files.insert(entry.path().expect("a path").display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let [one, other] = [image(), image()].map(|image| image.archive().expect("an archive"));
        assert_eq!(one, other);
    }

    #[test]
    fn every_blob_has_the_digest_that_names_it_and_both_indexes_lead_to_the_layer() {
        let files = files(&image().archive().expect("an archive"));
        for (path, bytes) in files
            .iter()
            .filter(|(path, _)| path.starts_with("blobs/sha256/") && path.len() > 13)
        {
            assert_eq!(path.strip_prefix("blobs/sha256/"), Some(digest(bytes).as_str()));
        }
        let read = |path: &str| -> Value { serde_json::from_slice(&files[path]).expect("JSON") };
        let index = read("index.json");
        let path = |digest: &Value| {
            digest
                .as_str()
                .expect("a digest")
                .replace("sha256:", "blobs/sha256/")
        };
        let manifest = read(&path(&index["manifests"][0]["digest"]));
        let layer = path(&manifest["layers"][0]["digest"]);
        assert_eq!(read("manifest.json")[0]["Layers"][0], layer);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(files[&layer].as_slice())
            .read_to_end(&mut unpacked)
            .expect("gzip");
        assert_eq!(self::files(&unpacked)["program"], b"a program");
        let config = read(&path(&manifest["config"]["digest"]));
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", digest(&unpacked))
        );
    }
}
