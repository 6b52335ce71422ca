//! `rmi` and `inspecti`: images by any of their names.

use std::collections::BTreeSet;

use berth_api::cri::{
    Image, ImageSpec, ImageStatusRequest, ImageStatusResponse, ListContainersRequest, ListImagesRequest,
    RemoveImageRequest,
};

use super::image_list;
use super::inspect::{some, titled};
use super::take::each;
use crate::error::Error;
use crate::human::size;
use crate::json;
use crate::node::Node;
use crate::output::{self, Format, line, one_or_list, pairs, show, sorted};

#[derive(clap::Args)]
pub(crate) struct Rmi {
    /// Ids, tags or digests. An image goes with all its tags, not only the one named
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// All there are
    #[arg(short, long, conflicts_with = "prune")]
    all: bool,
    /// All that no container was made from and that are not pinned
    #[arg(short = 'q', long)]
    prune: bool,
}

impl Rmi {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let names = match (self.all || self.prune, self.images.is_empty()) {
            (true, true) => self.listed(node).await?,
            (false, false) => self.images,
            (true, false) => {
                return Err(Error::usage("name images or give --all or --prune, not both"));
            }
            (false, true) => {
                return Err(Error::usage("name at least one image, or give --all or --prune"));
            }
        };
        each(&names, async |name| remove(node, name).await).await
    }

    async fn listed(&self, node: &Node) -> Result<Vec<String>, Error> {
        let mut images = node.images().await?;
        let found = node.quick("list images", images.list_images(ListImagesRequest::default())).await?.images;
        let used = if self.prune { used(node).await? } else { BTreeSet::new() };
        let stays = |image: &Image| used.contains(&image.id) || self.prune && image.pinned;
        Ok(found.into_iter().filter(|image| !stays(image)).map(|image| image.id).collect())
    }
}

/// Ids of the images that containers were made from.
async fn used(node: &Node) -> Result<BTreeSet<String>, Error> {
    let mut runtime = node.runtime().await?;
    let containers = node.quick("list containers", runtime.list_containers(ListContainersRequest::default())).await?;
    let mut ids = BTreeSet::new();
    for container in containers.containers {
        ids.insert(container.image_id);
        // Runtimes that do not tell the id tell the name the container was made with.
        if let Some(image) = container.image
            && let Some(found) = status(node, &image.image, false).await?.image
        {
            ids.insert(found.id);
        }
    }
    Ok(ids)
}

async fn remove(node: &Node, name: &str) -> Result<(), Error> {
    let Some(image) = status(node, name, false).await?.image else {
        return Err(Error::Refused(format!("remove image {name}: there is no such image")));
    };
    let mut images = node.images().await?;
    let request = RemoveImageRequest { image: Some(spec(name)) };
    node.answer(format!("remove image {name}"), None, images.remove_image(request)).await?;
    // An image that was pulled by digest has no tag to name.
    let names = if image.repo_tags.is_empty() { image.repo_digests } else { image.repo_tags };
    names.iter().try_for_each(|name| line(format!("Deleted: {name}")))
}

#[derive(clap::Args)]
pub(crate) struct Inspect {
    /// Ids, tags or digests; none: those that the flags choose, or all
    #[arg(value_name = "IMAGE")]
    images: Vec<String>,
    /// Only the image with this name
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    filters: image_list::Filters,
    /// Form of the output
    #[arg(short, long, default_value = "json")]
    output: Format,
    /// Leave out what the runtime tells beyond the contract
    #[arg(short, long)]
    quiet: bool,
}

impl Inspect {
    pub(crate) async fn run(mut self, node: &Node) -> Result<(), Error> {
        if self.images.is_empty() {
            let chosen = image_list::list(node, self.name.as_deref(), &self.filters).await?;
            self.images = chosen.into_iter().map(|image| image.id).collect();
        }
        let mut documents = Vec::new();
        let mut text = String::new();
        for name in some(&self.images)? {
            let answer = status(node, name, !self.quiet).await?;
            let info = sorted(&answer.info);
            let Some(image) = answer.image else {
                return Err(Error::Refused(format!("look at image {name}: there is no such image")));
            };
            text += &(image_text(&image) + &pairs("Info", &info));
            documents.push(output::with_info(titled(json::value(&image)), info));
        }
        show(self.output, || one_or_list(documents), || text)
    }
}

fn image_text(image: &Image) -> String {
    let tags = image.repo_tags.iter().map(|tag| format!("Tag: {tag}\n"));
    let digests = image.repo_digests.iter().map(|digest| format!("Digest: {digest}\n"));
    let names: String = tags.chain(digests).collect();
    format!("ID: {}\n{names}Size: {}\n", image.id, size(image.size))
}

pub(super) fn spec(name: &str) -> ImageSpec {
    ImageSpec { image: name.into(), ..Default::default() }
}

pub(super) async fn status(node: &Node, name: &str, verbose: bool) -> Result<ImageStatusResponse, Error> {
    let mut images = node.images().await?;
    let request = ImageStatusRequest { image: Some(spec(name)), verbose };
    node.quick(format!("look for image {name}"), images.image_status(request)).await
}

/// The image's first tag, or the name it was asked for with when it has none.
pub(super) async fn first_tag(node: &Node, name: &str) -> Result<String, Error> {
    let found = status(node, name, false).await?.image;
    Ok(found.and_then(|image| image.repo_tags.into_iter().next()).unwrap_or_else(|| name.into()))
}
