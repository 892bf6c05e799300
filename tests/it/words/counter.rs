//! Counts the names and comments of the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, Ident, Lit, Meta, Type, Visibility};

use super::measures::Tallies;
use super::{
    DURATION_SUFFIXES, FILLER_PREFIXES, FILLER_SUFFIXES, KNOWN_CONSTANTS, KNOWN_FUNCTIONS, KNOWN_TYPES, PRONOUNS,
    QUALIFIED_MODULES, SHORT_COMMENT_WORDS, TELL_FORMS,
};
use crate::source_tree::{SourceFile, line_range};

/// Counts the words of a name: `SockJs` and `run_journey` have two.
fn count_words(name: &str) -> usize {
    words_of(name).len()
}

/// Splits a name of whatever case into lower-case words.
fn words_of(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut was_upper = true;
    let is_constant = !name.contains(|letter: char| letter.is_ascii_lowercase());
    for part in name.trim_start_matches("r#").split('_').filter(|part| !part.is_empty()) {
        words.push(String::new());
        for letter in part.chars() {
            let starts = letter.is_ascii_uppercase() && !was_upper && !is_constant;
            if starts && words.last().is_some_and(|word| !word.is_empty()) {
                words.push(String::new());
            }
            was_upper = letter.is_ascii_uppercase();
            if let Some(word) = words.last_mut() {
                word.push(letter.to_ascii_lowercase());
            }
        }
    }
    words
}

/// Names of the whole program: a single file shows neither whose trait it implements nor every field.
#[derive(Default)]
struct Names {
    traits: BTreeSet<String>,
    /// Fields by room and type.
    fields: BTreeSet<(String, String, String)>,
}

/// Collects the [`Names`] of one file.
struct NamesReader<'a> {
    names: &'a mut Names,
    room: &'a str,
}

impl<'ast> Visit<'ast> for NamesReader<'_> {
    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.names.traits.insert(item.ident.to_string());
        visit::visit_item_trait(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        for field in item.fields.iter().filter_map(|field| field.ident.as_ref()) {
            self.names.fields.insert((self.room.to_owned(), item.ident.to_string(), field.to_string()));
        }
    }
}

/// The `impl` or trait around an item.
#[derive(Clone, Default)]
struct Owner {
    /// The type, or the trait.
    name: String,
    /// Whether another crate chose the names.
    is_foreign: bool,
}

/// Counts the names and comments of one file.
struct FileCounter<'a> {
    tallies: &'a mut Tallies,
    names: &'a Names,
    file: &'a SourceFile,
    module: Vec<String>,
    owner: Option<Owner>,
    comments: Vec<Comment>,
    public_types: Vec<(String, String)>,
}

/// A doc comment, and its lines in the file.
struct Comment {
    first: usize,
    last: usize,
    is_inner: bool,
    text: String,
}

impl FileCounter<'_> {
    fn place(&self, line: usize, text: impl Display) -> String {
        format!("src/{}:{line}: {text}", self.file.path)
    }

    fn count_function(&mut self, signature: &syn::Signature, owner: Option<&Owner>) {
        let name = signature.ident.to_string();
        if owner.is_some_and(|owner| owner.is_foreign) {
            return;
        }
        let place = self.place(signature.ident.span().start().line, &name);
        let is_filler = FILLER_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
            || FILLER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
        self.tallies.entry("fillers").add(is_filler, || place.clone());
        if let (Some(owner), Some(_)) = (owner, signature.receiver()) {
            let repeats = words_of(&owner.name).last().is_some_and(|last| words_of(&name).contains(last));
            self.tallies.entry("repeated_types").add(repeats, || format!("{place} of {}", owner.name));
        }
        let is_getter = signature.receiver().is_some()
            && signature.inputs.len() == 1
            && owner.is_some_and(|owner| {
                let field = (self.file.room().to_owned(), owner.name.clone(), name.clone());
                self.names.fields.contains(&field)
            });
        if !is_getter && !KNOWN_FUNCTIONS.contains(&name.as_str()) {
            self.tallies.entry("functions").add(count_words(&name) == 1, || place);
        }
    }

    fn count_type(&mut self, ident: &Ident, visibility: &Visibility) {
        let name = ident.to_string();
        let place = self.place(ident.span().start().line, &name);
        if KNOWN_TYPES.contains(&name.as_str()) {
            return;
        }
        if !matches!(visibility, Visibility::Inherited) {
            self.public_types.push((name.clone(), place.clone()));
        }
        self.tallies.entry("types").add(count_words(&name) == 1, || place);
    }

    fn count_constant(&mut self, ident: &Ident, ty: &Type) {
        let name = ident.to_string();
        if name == "_" || KNOWN_CONSTANTS.contains(&name.as_str()) {
            return;
        }
        let place = self.place(ident.span().start().line, &name);
        if type_name(ty) == "Duration" {
            let is_bound = DURATION_SUFFIXES.contains(&name.rsplit('_').next().unwrap_or_default());
            self.tallies.entry("durations").add(!is_bound, || place.clone());
        }
        let is_qualified = self.module.last().is_some_and(|module| QUALIFIED_MODULES.contains(&module.as_str()));
        if !is_qualified {
            self.tallies.entry("constants").add(count_words(&name) == 1, || place);
        }
    }

    /// A macro's calls and definitions hold comments too.
    fn read_macro_comments(&mut self, tokens: TokenStream) {
        let mut is_inner = false;
        for token in tokens {
            match token {
                TokenTree::Group(group) => {
                    let attribute = group.stream().into_iter().collect::<Vec<TokenTree>>();
                    if let [TokenTree::Ident(name), TokenTree::Punct(_), TokenTree::Literal(text)] = &attribute[..]
                        && name == "doc"
                        && let Ok(text) = syn::parse_str::<syn::LitStr>(&text.to_string())
                    {
                        let (first, last) = (group.span_open().start().line, group.span_close().end().line);
                        self.add_comment(first, last, is_inner, &text.value());
                    } else {
                        self.read_macro_comments(group.stream());
                    }
                    is_inner = false;
                }
                TokenTree::Punct(punct) => is_inner = punct.as_char() == '!',
                _ => is_inner = false,
            }
        }
    }

    fn add_comment(&mut self, first: usize, last: usize, is_inner: bool, line: &str) {
        if let Some(above) = self.comments.last_mut()
            && above.last + 1 == first
            && above.is_inner == is_inner
        {
            above.last = last;
            above.text = format!("{}\n{line}", above.text);
            return;
        }
        self.comments.push(Comment { first, last, is_inner, text: line.to_owned() });
    }

    fn count_comments(&mut self) {
        for comment in std::mem::take(&mut self.comments) {
            let is_short = comment.text.split_whitespace().count() <= SHORT_COMMENT_WORDS;
            let (path, first) = (&self.file.path, comment.first);
            let place = |text: &str| format!("src/{path}:{first}: {text}");
            self.tallies.entry("short_comments").add(is_short, || place(comment.text.trim()));
            for sentence in sentences(&comment.text) {
                let mut words = sentence.split(|letter: char| !letter.is_alphanumeric() && letter != '\'');
                let first = words.clone().find(|word| !word.is_empty()).unwrap_or_default();
                let line = place(&sentence);
                self.tallies.entry("pronouns").add(PRONOUNS.contains(&first), || line.clone());
                let tells = words.any(|word| TELL_FORMS.contains(&word.to_ascii_lowercase().as_str()));
                self.tallies.entry("tell").add(tells, || line);
            }
        }
    }
}

/// Splits a comment into sentences; code, tables and headings are none.
fn sentences(comment: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    let mut is_code = false;
    for line in comment.lines().map(str::trim) {
        if line.starts_with("```") {
            is_code = !is_code;
            continue;
        }
        let bullet = line.strip_prefix("- ").or_else(|| line.strip_prefix("* "));
        if is_code || line.is_empty() || line.starts_with(['#', '|']) || bullet.is_some() {
            paragraphs.push(String::new());
        }
        if is_code || line.starts_with(['#', '|']) {
            continue;
        }
        if let Some(paragraph) = paragraphs.last_mut() {
            paragraph.push_str(bullet.unwrap_or(line));
            paragraph.push(' ');
        }
    }
    let mut sentences = Vec::new();
    for paragraph in &paragraphs {
        let mut start = 0;
        let words = paragraph.char_indices().filter(|(at, letter)| {
            let is_end = letter.is_ascii_whitespace() && paragraph[..*at].ends_with(['.', '?', '!']);
            let next = paragraph[*at..].trim_start();
            is_end && next.starts_with(|first: char| first.is_uppercase() || "`[\"".contains(first))
        });
        for (at, _) in words.chain([(paragraph.len(), ' ')]) {
            let sentence = paragraph[start..at].trim();
            if !sentence.is_empty() {
                sentences.push(sentence.to_owned());
            }
            start = at;
        }
    }
    sentences
}

fn type_name(ty: &Type) -> String {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default(),
        Type::Reference(reference) => type_name(&reference.elem),
        _ => String::new(),
    }
}

impl<'ast> Visit<'ast> for FileCounter<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let foreign = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        let is_foreign = foreign.is_some_and(|last| !self.names.traits.contains(&last.ident.to_string()));
        let outer = self.owner.replace(Owner { name: type_name(&item.self_ty), is_foreign });
        visit::visit_item_impl(self, item);
        self.owner = outer;
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.count_type(&item.ident, &item.vis);
        let outer = self.owner.replace(Owner { name: item.ident.to_string(), is_foreign: false });
        visit::visit_item_trait(self, item);
        self.owner = outer;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        // Items inside a function are nobody's.
        let owner = self.owner.take();
        self.count_function(&item.sig, owner.as_ref());
        visit::visit_impl_item_fn(self, item);
        self.owner = owner;
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        let owner = self.owner.take();
        self.count_function(&item.sig, owner.as_ref());
        visit::visit_trait_item_fn(self, item);
        self.owner = owner;
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.count_function(&item.sig, None);
        visit::visit_item_fn(self, item);
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_union(&mut self, item: &'ast syn::ItemUnion) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_union(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.count_type(&item.ident, &item.vis);
        visit::visit_item_type(self, item);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_item_const(self, item);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_item_static(self, item);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        if self.owner.as_ref().is_none_or(|owner| !owner.is_foreign) {
            self.count_constant(&item.ident, &item.ty);
        }
        visit::visit_impl_item_const(self, item);
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.count_constant(&item.ident, &item.ty);
        visit::visit_trait_item_const(self, item);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(text) = &pair.value
            && let Lit::Str(text) = &text.lit
        {
            let lines = line_range(attribute);
            let is_inner = matches!(attribute.style, syn::AttrStyle::Inner(_));
            self.add_comment(*lines.start(), *lines.end(), is_inner, &text.value());
        }
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.read_macro_comments(call.tokens.clone());
    }
}

/// Counts names and comments; commits are counted apart.
pub(super) fn count_sources(files: &[SourceFile]) -> Tallies {
    let mut names = Names::default();
    for file in files {
        let mut reader = NamesReader { names: &mut names, room: file.room() };
        file.items.iter().for_each(|item| reader.visit_item(item));
    }
    let mut tallies = Tallies::default();
    let mut public_types: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for file in files {
        let mut counter = FileCounter {
            tallies: &mut tallies,
            names: &names,
            file,
            module: file.module.clone(),
            owner: None,
            comments: Vec::new(),
            public_types: Vec::new(),
        };
        file.attributes.iter().for_each(|attribute| counter.visit_attribute(attribute));
        file.items.iter().for_each(|item| counter.visit_item(item));
        counter.count_comments();
        for (name, place) in counter.public_types {
            public_types.entry((file.room(), name)).or_default().push(place);
        }
    }
    for places in public_types.into_values() {
        let is_ambiguous = places.len() > 1;
        for place in places {
            tallies.entry("ambiguous_types").add(is_ambiguous, || place);
        }
    }
    tallies
}
