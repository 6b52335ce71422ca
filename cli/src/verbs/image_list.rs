//! `images`: lists images, sorted by name, with crictl's filters.

use std::str::FromStr;

use berth_api::cri::{Image, ImageFilter, ListImagesRequest, ListImagesResponse};
use regex::Regex;

use super::image::spec;
use crate::error::Error;
use crate::human::size;
use crate::json;
use crate::node::Node;
use crate::output::{self, Format, short, show};
use crate::table::Table;

const NONE: &str = "<none>";

#[derive(clap::Args)]
pub(crate) struct Images {
    /// Only the image with this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
    #[command(flatten)]
    filters: Filters,
    /// Form of the output
    #[arg(short, long, default_value = "table")]
    output: Format,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Show which ones are pinned
    #[arg(long)]
    pinned: bool,
    /// Only ids, in full
    #[arg(short, long)]
    quiet: bool,
    /// All about each, rather than a line
    #[arg(short, long)]
    verbose: bool,
    /// Ids in full
    #[arg(long)]
    no_trunc: bool,
}

#[derive(clap::Args)]
pub(crate) struct Filters {
    /// dangling=true|false, reference=REGEX (of the repository), before=IMAGE or since=IMAGE (in the order of the list);
    /// several must all match
    #[arg(short, long = "filter", value_name = "FILTER")]
    filters: Vec<Filter>,
}

#[derive(Clone)]
enum Filter {
    Dangling(bool),
    Reference(Regex),
    Before(String),
    Since(String),
}

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
        match key {
            "dangling" => value.parse().map(Self::Dangling).map_err(|_| "dangling is true or false".into()),
            "reference" => Regex::new(value).map(Self::Reference).map_err(|error| error.to_string()),
            "before" => Ok(Self::Before(value.into())),
            "since" => Ok(Self::Since(value.into())),
            _ => Err(format!("unknown filter {key:?}: known are dangling, reference, before, since")),
        }
    }
}

impl Filter {
    fn apply(&self, images: Vec<Image>) -> Vec<Image> {
        match self {
            Self::Dangling(yes) => images.into_iter().filter(|image| image.repo_tags.is_empty() == *yes).collect(),
            Self::Reference(pattern) => {
                images.into_iter().filter(|image| pattern.is_match(repository_and_digest(image).0)).collect()
            }
            Self::Since(name) => images.into_iter().take_while(|image| !is_named(image, name)).collect(),
            Self::Before(name) => {
                let after = images.iter().position(|image| is_named(image, name)).map_or(0, |found| found + 1);
                images.into_iter().skip(after).collect()
            }
        }
    }
}

/// By tag, by digest, or by the beginning of the id.
fn is_named(image: &Image, name: &str) -> bool {
    image.repo_tags.iter().chain(&image.repo_digests).any(|known| known == name)
        || image.id.starts_with(name)
        || image.id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(name))
}

/// Images by name, sorted and filtered.
pub(super) async fn list(node: &Node, name: Option<&str>, filters: &Filters) -> Result<Vec<Image>, Error> {
    let filter = ImageFilter { image: Some(spec(name.unwrap_or_default())) };
    let mut images = node.images().await?;
    let request = ListImagesRequest { filter: Some(filter) };
    let mut found = node.quick("list images", images.list_images(request)).await?.images;
    let key = |image: &Image| {
        let names = (image.repo_tags.first().cloned(), image.repo_digests.first().cloned());
        (names.0.is_none(), names, image.id.clone())
    };
    found.sort_by_key(key);
    Ok(filters.filters.iter().fold(found, |images, filter| filter.apply(images)))
}

impl Images {
    pub(crate) async fn run(self, node: &Node) -> Result<(), Error> {
        let images = list(node, self.name.as_deref(), &self.filters).await?;
        if self.output == Format::Table && self.quiet {
            return output::print(images.iter().map(|image| image.id.clone() + "\n").collect::<String>());
        }
        let table = || match self.verbose {
            true => images.iter().map(verbose).collect(),
            false => self.table(&images),
        };
        show(self.output, || json::document(&ListImagesResponse { images: images.clone() }), table)
    }

    fn table(&self, images: &[Image]) -> String {
        let mut header = vec!["IMAGE", "TAG", "IMAGE ID", "SIZE"];
        if self.digests {
            header.insert(2, "DIGEST");
        }
        if self.pinned {
            header.push("PINNED");
        }
        let cut = |id: &str| {
            if self.no_trunc { id.to_owned() } else { short(id) }
        };
        let mut rows = vec![header.into_iter().map(String::from).collect::<Vec<_>>()];
        for image in images {
            let digest = repository_and_digest(image).1;
            for (repository, tag) in names(image) {
                let mut row = vec![repository, tag, cut(&image.id), size(image.size)];
                if self.digests {
                    row.insert(2, cut(digest));
                }
                if self.pinned {
                    row.push(image.pinned.to_string());
                }
                rows.push(row);
            }
        }
        Table::from_rows(rows).render()
    }
}

/// One line for each tag; an image without one is shown by its repository.
fn names(image: &Image) -> Vec<(String, String)> {
    if image.repo_tags.is_empty() {
        return vec![(repository_and_digest(image).0.into(), NONE.into())];
    }
    let split = |tag: &String| {
        let (repository, tag) = tag.rsplit_once(':').unwrap_or((tag, NONE));
        (repository.to_owned(), tag.to_owned())
    };
    image.repo_tags.iter().map(split).collect()
}

fn repository_and_digest(image: &Image) -> (&str, &str) {
    image.repo_digests.first().and_then(|digest| digest.split_once('@')).unwrap_or((NONE, NONE))
}

fn verbose(image: &Image) -> String {
    let mut text = format!("ID: {}\n", image.id);
    image.repo_tags.iter().for_each(|tag| text += &format!("RepoTags: {tag}\n"));
    image.repo_digests.iter().for_each(|digest| text += &format!("RepoDigests: {digest}\n"));
    text += &format!("Size: {}\n", image.size);
    if let Some(uid) = &image.uid {
        text += &format!("Uid: {}\n", uid.value);
    }
    if !image.username.is_empty() {
        text += &format!("Username: {}\n", image.username);
    }
    if image.pinned {
        text += "Pinned: true\n";
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, tags: &[&str], digests: &[&str]) -> Image {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Image { id: id.into(), repo_tags: own(tags), repo_digests: own(digests), ..Default::default() }
    }

    fn ids(images: Vec<Image>) -> Vec<String> {
        images.into_iter().map(|image| image.id).collect()
    }

    #[test]
    fn an_image_has_a_line_for_each_tag() {
        let tagged = image("i", &["r.io:5000/a:1", "r.io:5000/a:2"], &["r.io:5000/a@sha256:d"]);
        assert_eq!(names(&tagged), [("r.io:5000/a".into(), "1".into()), ("r.io:5000/a".into(), "2".into())]);
        let untagged = image("i", &[], &["r.io/a@sha256:d"]);
        assert_eq!(names(&untagged), [("r.io/a".into(), NONE.into())]);
        assert_eq!(names(&image("i", &[], &[])), [(NONE.into(), NONE.into())]);
    }

    #[test]
    fn filters_choose() {
        let all = || {
            vec![
                image("sha256:1", &["r/a:1"], &["r/a@sha256:x"]),
                image("sha256:2", &["r/b:1"], &["r/b@sha256:y"]),
                image("sha256:3", &[], &["r/c@sha256:z"]),
            ]
        };
        let check = |filter: &str, want: &[&str]| {
            assert_eq!(ids(filter.parse::<Filter>().unwrap().apply(all())), want, "{filter}");
        };
        check("dangling=true", &["sha256:3"]);
        check("dangling=false", &["sha256:1", "sha256:2"]);
        check("reference=^r/[bc]$", &["sha256:2", "sha256:3"]);
        check("since=r/b:1", &["sha256:1"]);
        check("before=r/b@sha256:y", &["sha256:3"]);
        check("before=2", &["sha256:3"]);
        assert!("newer=1".parse::<Filter>().is_err() && "dangling=maybe".parse::<Filter>().is_err());
    }
}
