//! Text into HTML: what is ours goes in as it is, what is anybody else's is made visible and escaped.
//!
//! That is in the types: [`Markup::raw`] takes only text that was there when the program was compiled. It must not know the page.

use crate::output::text::{shorten, visible};

/// Longest text of others in a page, in characters.
const MOST_CHARACTERS: usize = 400;

/// A growing document.
#[derive(Debug, Default)]
pub struct Markup(String);

impl Markup {
    /// Ours.
    pub fn raw(&mut self, text: &'static str) -> &mut Self {
        self.0.push_str(text);
        self
    }

    /// Anybody's, as text or inside the quotes of an attribute.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for character in shorten(&visible(text), MOST_CHARACTERS).chars() {
            match character {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                _ => self.0.push(character),
            }
        }
        self
    }

    /// A number of a drawing, with one digit behind the point.
    pub fn number(&mut self, number: f64) -> &mut Self {
        let finite = if number.is_finite() { number } else { 0.0 };
        self.0.push_str(&format!("{finite:.1}"));
        self
    }

    /// An element with a text in it.
    pub fn element(&mut self, open: &'static str, text: &str, close: &'static str) -> &mut Self {
        self.raw(open).text(text).raw(close)
    }

    /// A link with a text in it.
    pub fn link(&mut self, address: &str, text: &str) -> &mut Self {
        self.raw("<a href=\"").text(address).raw("\">").text(text).raw("</a>")
    }

    /// The document.
    pub fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quick_xml::{Reader, events::Event};

    use super::*;

    proptest! {
        /// A parser that we did not write finds one element with one attribute, and the text in both.
        #[test]
        fn texts_never_leave_their_place(text in "\\PC{1,40}|[<>&\"'a-z/=! -]{1,40}") {
            let mut markup = Markup::default();
            markup.raw("<p title=\"").text(&text).raw("\">").text(&text).raw("</p>");
            let document = markup.finish();
            let mut reader = Reader::from_str(&document);
            let (mut found, mut title) = (String::new(), String::new());
            loop {
                match reader.read_event().unwrap() {
                    Event::Start(start) => {
                        prop_assert!(start.name().as_ref() == b"p");
                        let attributes: Vec<_> = start.attributes().map(Result::unwrap).collect();
                        prop_assert_eq!(attributes.len(), 1);
                        title = quick_xml::escape::unescape(std::str::from_utf8(&attributes[0].value).unwrap()).unwrap().into_owned();
                    }
                    Event::Text(text) => found.push_str(&text.decode().unwrap()),
                    Event::GeneralRef(name) => {
                        let name = format!("&{};", name.decode().unwrap());
                        found.push_str(&quick_xml::escape::unescape(&name).unwrap());
                    }
                    Event::Eof => break,
                    _ => {}
                }
            }
            let expected = visible(&text).into_owned();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(title, expected);
        }
    }
}
