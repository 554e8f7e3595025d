//! Images at the daemon: each of the store's is handed over once, bears its digest, and goes when the store has it no more.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use bollard::query_parameters::{CreateImageOptions, ListImagesOptions, RemoveImageOptions};
use bytes::Bytes;
use futures_util::{TryStreamExt, stream::poll_fn};
use images::Image;
use tokio::{
    sync::{Mutex, mpsc},
    task::spawn_blocking,
};

use super::{DockerError, labels};

/// Pieces on their way to the daemon, and the size of one.
const PIECES: usize = 8;
const PIECE: usize = 256 * 1024;

/// What this process knows to be there.
#[derive(Debug)]
pub(super) struct Images {
    /// Held while one is handed over by any mayfly of this host.
    lock: PathBuf,
    /// The image store, which is where an image of the daemon's comes from.
    store: PathBuf,
    there: Mutex<HashSet<String>>,
}

impl Images {
    pub(super) fn new(run_dir: &Path, node: &Path) -> Self {
        let store = node.join("images");
        let store = store.canonicalize().unwrap_or(store);
        Self { lock: run_dir.join("docker-images.lock"), store, there: Mutex::default() }
    }

    /// The image's name at the daemon, which has it from then on.
    pub(super) async fn hand_over(
        &self,
        client: &bollard::Docker,
        image: &Arc<Image>,
    ) -> Result<String, DockerError> {
        let name = name_of(image);
        // One at a time: whoever waits here wants the same, or would only make it slower.
        let mut there = self.there.lock().await;
        if there.contains(&name) {
            return Ok(name);
        }
        let _lock = self.lock().await?;
        if !is_there(client, &name, image).await? {
            self.import(client, image).await?;
            self.collect(client).await?;
        }
        there.insert(name.clone());
        Ok(name)
    }

    /// The daemon says that it does not have it: somebody removed it, or the daemon lost all.
    pub(super) async fn forget(&self, name: &str) {
        self.there.lock().await.remove(name);
    }

    async fn lock(&self) -> Result<File, DockerError> {
        let path = self.lock.clone();
        let locked = spawn_blocking(move || {
            let open = || File::options().create(true).truncate(false).write(true).open(&path);
            open()
                .and_then(|file| file.lock().map(|()| file))
                .map_err(|error| DockerError::Mark { path, error })
        });
        locked.await?
    }

    async fn import(&self, client: &bollard::Docker, image: &Arc<Image>) -> Result<(), DockerError> {
        let digest = image.digest.to_string();
        let store = self.store.to_string_lossy();
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(REPOSITORY.to_owned()),
            tag: Some(tag_of(image)),
            changes: vec![
                format!("LABEL {}={digest}", labels::DIGEST),
                format!("LABEL {}=\"{}\"", labels::STORE, store.replace(['"', '\\', '$', '\n'], "_")),
            ],
            ..CreateImageOptions::default()
        };
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let body = bollard::body_try_stream(poll_fn(move |cx| pieces.poll_recv(cx)));
        let read = Arc::clone(image);
        let reading = spawn_blocking(move || {
            let outcome = read.write_rootfs(BufWriter::with_capacity(PIECE, Pieces(sender.clone())));
            if outcome.is_err() {
                // Else the daemon would take what came for the whole.
                let _ = sender.blocking_send(Err(io::ErrorKind::BrokenPipe.into()));
            }
            outcome
        });
        let taken: Result<Vec<_>, _> =
            client.create_image(Some(options), Some(body), None).try_collect().await;
        // Why the image could not be read says more than that the daemon did not get it.
        match (reading.await?, taken) {
            (Err(error), Err(_)) => Err(error.into()),
            (_, taken) => {
                taken.map(drop).map_err(DockerError::request("hand the image to the docker daemon"))
            }
        }
    }

    /// Removes the images of this store that the store does not have any more.
    pub(super) async fn collect(&self, client: &bollard::Docker) -> Result<(), DockerError> {
        let store = self.store.to_string_lossy().replace(['"', '\\', '$', '\n'], "_");
        let filters = HashMap::from([("label".to_owned(), vec![format!("{}={store}", labels::STORE)])]);
        let options = ListImagesOptions { filters: Some(filters), ..ListImagesOptions::default() };
        let found = client.list_images(Some(options)).await;
        for image in found.map_err(DockerError::request("list the docker daemon's images"))? {
            let Some(hex) =
                image.labels.get(labels::DIGEST).and_then(|digest| digest.strip_prefix("sha256:"))
            else {
                continue;
            };
            if hex.contains('/') || self.store.join("sha256").join(hex).exists() {
                continue;
            }
            // In use, it stays until the next look.
            let removed = client.remove_image(&image.id, None::<RemoveImageOptions>, None).await;
            tracing::info!(image = %image.id, removed = removed.is_ok(), "an image that the store has no more");
        }
        Ok(())
    }
}

const REPOSITORY: &str = "mayfly";

fn tag_of(image: &Image) -> String {
    image.digest.hex()[..12].to_owned()
}

/// What a daemon calls an image that was handed over to it.
#[must_use]
pub fn name_of(image: &Image) -> String {
    format!("{REPOSITORY}:{}", tag_of(image))
}

async fn is_there(client: &bollard::Docker, name: &str, image: &Image) -> Result<bool, DockerError> {
    match client.inspect_image(name).await {
        Ok(found) => {
            let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
            Ok(labels.get(labels::DIGEST) == Some(&image.digest.to_string()))
        }
        Err(error) if DockerError::status(&error) == Some(404) => Ok(false),
        Err(error) => Err(DockerError::request("look for the image at the docker daemon")(error)),
    }
}

/// What is written here goes to the daemon.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
