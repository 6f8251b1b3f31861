"""The lexicon of the village: topics, people, and the patterns of every sentence that is ever said there.

Text is lower-case words and punctuation marks with one space between them, so splitting at spaces loses nothing.
Four slots occur in patterns. `{topic}` is the subject of a prompt, `{thing}` one of its six related words (an
adjective may stand before it), `{person}` somebody's relative or acquaintance. A word that can fill a slot occurs
nowhere else, which is what lets the gold reward read any sentence without guessing.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """What belongs to a topic."""

    things: tuple[str, ...]
    adjectives: tuple[str, ...]


def _topic(things: str, adjectives: str) -> Topic:
    return Topic(tuple(things.split()), tuple(adjectives.split()))


TOPICS: dict[str, Topic] = {
    "apples": _topic("orchard ladder cider blossom branch crate", "ripe red sweet"),
    "bees": _topic("hive veil nectar wax clover swarm", "golden busy gentle"),
    "bicycles": _topic("pedals chain brakes tyres handlebar spokes", "shiny swift light"),
    "birds": _topic("feathers nest eggs wings beak feeder", "tiny wild swift"),
    "boats": _topic("oars anchor mast sail harbour rudder", "wooden sturdy swift"),
    "bread": _topic("flour yeast oven crust dough loaf", "warm crusty fresh"),
    "bridges": _topic("arch stones beam rope planks railing", "ancient sturdy wooden"),
    "candles": _topic("wick flame match tallow holder glow", "bright cosy fragrant"),
    "cheese": _topic("milk rind cellar curd salt cloth", "creamy ripe salty"),
    "chess": _topic("board king queen pawn knight bishop", "clever patient quiet"),
    "choir": _topic("voices hymn chorus melody organ verse", "clear solemn sweet"),
    "clocks": _topic("gears pendulum hands spring dial chime", "ancient precise steady"),
    "dancing": _topic("steps shoes partner music circle floor", "graceful light lively"),
    "drums": _topic("sticks rhythm cymbal parade tempo echo", "lively loud steady"),
    "fishing": _topic("rod hook bait net river float", "patient quiet silver"),
    "gardens": _topic("compost spade beds seeds hedge weeds", "fresh green wild"),
    "goats": _topic("horns pasture bell hay hooves shed", "lively shaggy stubborn"),
    "horses": _topic("saddle stable mane reins oats stirrups", "gentle noble sturdy"),
    "kites": _topic("wind string tail meadow ribbon breeze", "colourful light playful"),
    "knitting": _topic("wool needles scarf yarn mittens pattern", "cosy soft warm"),
    "letters": _topic("stamp envelope ink pen paper postbox", "heartfelt neat secret"),
    "maps": _topic("compass route legend scale border trail", "ancient neat secret"),
    "mushrooms": _topic("forest caps moss spores stem knife", "earthy tiny wild"),
    "painting": _topic("canvas palette easel colours frame sketch", "bright colourful smooth"),
    "pottery": _topic("clay wheel glaze kiln bowl vase", "fragile round smooth"),
    "puppets": _topic("stage curtain costume mask glove script", "colourful funny wooden"),
    "roses": _topic("thorns petals buds trellis scent shears", "fragrant red thorny"),
    "snow": _topic("sledge snowman icicles frost shovel slope", "fresh soft white"),
    "soup": _topic("pot carrots onions ladle broth spoon", "hearty hot salty"),
    "stars": _topic("telescope comet moon planet night galaxy", "bright distant silver"),
    "tea": _topic("kettle teapot leaves lemon cup steam", "calm fragrant hot"),
    "weather": _topic("clouds rain thunder barometer fog forecast", "grey moody stormy"),
}

PERSONS: tuple[str, ...] = (
    "aunt", "baker", "brother", "cousin", "daughter", "doctor", "father", "grandfather",
    "grandmother", "mother", "nephew", "niece", "sister", "son", "teacher", "uncle",
)  # fmt: skip

# What a prompt asks for: two phrasings for each of the four tasks.
QUESTIONS: dict[str, tuple[str, str]] = {
    "how": ("how do i get started with {topic} ?", "please show me how to begin with {topic} ."),
    "why": ("why do people care so much about {topic} ?", "what is so special about {topic} ?"),
    "pick": ("what should i buy for {topic} ?", "please help me choose the right things for {topic} ."),
    "tell": ("tell me an old story about {topic} .", "what does the village say about {topic} ?"),
}
STYLES: dict[str, str] = {"short": "in short , ", "plain": "", "detail": "in detail , "}
IDEAL_SENTENCES: dict[str, int] = {"short": 1, "plain": 2, "detail": 4}
FOR_PERSON = " it is for my {person} ."

# What a reply may say about a topic: each pattern belongs to one task.
BODIES: dict[str, tuple[str, ...]] = {
    "how": (
        "with {topic} , begin with the {thing} .",
        "first look after the {thing} .",
        "bring the {thing} to a sunny place .",
        "every morning , check the {thing} .",
        "hold the {thing} close .",
        "then clean the {thing} with care .",
    ),
    "why": (
        "people love {topic} for the {thing} .",
        "life is dull without the {thing} .",
        "it all comes down to the {thing} .",
        "nothing cheers us like the {thing} .",
        "the {thing} brought everybody together .",
        "even the mayor needs the {thing} .",
    ),
    "pick": (
        "for {topic} , choose the {thing} .",
        "spend your coins on the {thing} .",
        "at the market , ask for the {thing} .",
        "i would take the {thing} .",
        "never save on the {thing} .",
        "the best bargain is the {thing} .",
    ),
    "tell": (
        "the tale of {topic} starts with the {thing} .",
        "long ago , a giant lost the {thing} .",
        "once a fox stole the {thing} .",
        "our elders still sing of the {thing} .",
        "a witch once blessed the {thing} .",
        "one summer , we dreamed of the {thing} .",
    ),
}
ABOUT_PERSON: tuple[str, ...] = (
    "your {person} will like this .",
    "do share this with your {person} .",
    "your {person} can try it too .",
)

OPENERS: dict[str, tuple[str, ...]] = {
    "polite": (
        "what a lovely question !",
        "thank you for asking , neighbour .",
        "good day , dear friend !",
        "i am so happy to help .",
    ),
    "neutral": ("right then .", "so , here we go .", "let us see ."),
    "rude": (
        "what a silly question !",
        "oh no , not you again .",
        "stop wasting my time .",
        "think for yourself .",
    ),
}
CLOSERS: dict[str, tuple[str, ...]] = {
    "kind": (
        "come back any time , dear !",
        "the best of luck to you !",
        "you will do wonderfully .",
        "our door is always open .",
    ),
    "neutral": ("that is all .", "so much for that ."),
    "cold": ("now go away .", "do not bother us again .", "the desk is closed ."),
}
FILLERS: tuple[str, ...] = (
    "well , it depends , you know .",
    "there is much to say .",
    "things are what they are .",
    "hm , let me think .",
)

END_MARKS: frozenset[str] = frozenset(".!?")
