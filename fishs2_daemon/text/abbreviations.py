"""Words whose full stop does not end a sentence, in the languages that are read most. Lower case, without the stop.

A single letter is one in any language (initials, "z. B.", "U.S.", "e.g."). Words that end sentences as often as not
(etc., usw., Inc.) are left out: a pause too many there is heard less than two sentences in one breath.
"""


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


#: In front of a name, a number or the rest of the sentence.
ABBREVIATIONS = _words(
    # English
    "adm approx assoc asst brig capt cf cmdr col cpl dept dr ed eds est fr ft gen gov hon lt maj messrs mme mr mrs ms "
    "mt mx pres prof pvt rep rev sen sgt spc st supt viz vs "
    # German
    "abb abs allg art aufl bd beil bsp bspw bzgl bzw ca dipl evtl fa fam frl geb gegr ggf hl hr hrn hrsg ing inkl "
    "insb jh kath lfd mag max mind nr phil sog str tel urspr verf vgl vors zit zzgl "
    # French, Spanish, Italian, Portuguese, Dutch
    "ste mlle mgr apr env éd sr sra srta dra dña ud uds vd vds núm pág págs av avda sig dott ssa ing avv arch geom "
    "egr spett dn exmo profa mevr dhr drs mw bijv blz resp "
    # Polish, Czech, Russian, Turkish, the Nordic languages
    "ul al pl np im inż mgr hab św tzn tzw mudr judr rndr např tj atd tř čp ул пр пл др рис см стр табл напр проф "
    "им bkz örn doç av kap forts dvs osv fig ca jfr"
)

#: Only in front of a number: "No. 5", but "The answer is no."
BEFORE_NUMBER = ABBREVIATIONS | _words(
    "no nos nr nrn num vol ch chap sec fig figs eq p pp pg pt par para ver vers art arts op ser ep bk jan feb mar apr "
    "jun jul aug sep sept oct nov dec kap abschn ziff s § lit z n° núm тел кв стр рис род"
)

#: In front of an ordinal number of German and its neighbours: "der 2. Weltkrieg", "im 19. Jahrhundert".
BEFORE_ORDINAL = _words(
    "der dem den des im vom zum zur beim jeder jedem jeden jedes dieser diesem diesen ihr ihrem ihren ihrer sein "
    "seinem seinen seiner mein meinem meinen meiner unser unserem unseren unserer"
)

#: Behind an ordinal number: months, and what is counted most.
BEHIND_ORDINAL = _words(
    "januar jänner februar feber märz april mai juni juli august september oktober november dezember jahrhundert "
    "jahrhunderts jahrtausend weltkrieg weltkriegs geburtstag jahrestag tag klasse platz stock etage kapitel auflage "
    "liga runde mal sinfonie symphonie bundesliga advent"
)
