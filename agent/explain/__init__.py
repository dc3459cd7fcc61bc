"""What the node itself knows of its pods, told to people: `nodelet why`, `nodelet pods`. No API is needed.

situation   everything known of one pod, frozen
blockers    what keeps it from where it should be, and why: a pure function
report      situation and timeline as one document, which is what the socket carries
service     the socket of the running agent
render      the document as text
command     the two commands
"""
